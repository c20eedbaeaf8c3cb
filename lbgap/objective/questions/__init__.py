"""Questions asked of model, loss and data before a number is believed: one a file, asked by ``objective.judge``."""
