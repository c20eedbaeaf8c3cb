"""The machine: files that appear whole, devices, processes, progress on a terminal."""
