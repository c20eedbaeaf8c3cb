"""The start of a command: what it loads, the version, completion, and Ctrl-C before anything is measured."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

import lbgap
from lbgap.cli.commands import COMMANDS

# Prints which of the packages that take long to load a command line has loaded.
LOADED = """
import sys
from lbgap.cli.app import main
try:
    main()
finally:
    heavy = ("torch", "numpy", "scipy", "matplotlib", "safetensors", "jinja2", "optuna")
    print("loaded:", [name for name in heavy if name in sys.modules])
"""


def start(*command, **environment):
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--help"], ["--version"], ["--show-completion", "bash"], ["measure", "trace", "--help"]),
        *([name, "--help"] for name in COMMANDS),
    ],
    ids=" ".join,
)
def test_help_loads_nothing(arguments):
    code, out, err = finish(start("-c", LOADED, *arguments))
    assert (code, err) == (0, "")
    assert out.endswith("loaded: []\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("lbgap sw", ["sweep"]),
        ("lbgap train --netw", ["--network"]),
        ("lbgap measure pos", ["positive-mass"]),
        ("lbgap measure trace --kind g", ["ggn"]),
    ],
)
def test_completion_loads_nothing(words, expected):
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_LBGAP_COMPLETE": "complete_bash"}
    code, out, err = finish(start("-c", LOADED, **asked))
    assert (code, err) == (0, "")
    assert out.splitlines() == [*expected, "loaded: []"]


def test_the_script_that_completes_names_the_command(lbgap_command):
    code, out, err = lbgap_command("--show-completion", "bash")
    assert (code, err) == (0, "")
    assert "complete -o default -F _lbgap_completion lbgap" in out


def test_version(lbgap_command):
    assert lbgap_command("--version") == (0, f"lbgap {lbgap.__version__}\n", "")


INTERRUPTED = (130, "", "lbgap: interrupted\n")


def in_place_of_torch(folder, text):
    """The environment of a process that loads a text when it loads PyTorch."""
    (folder / "torch.py").write_text(text)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


@pytest.mark.parametrize(
    "torch",
    [
        "raise KeyboardInterrupt",
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)",
        # Libraries that are loaded catch whatever fails, and go on.
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass",
    ],
    ids=["raised", "sent", "swallowed"],
)
def test_ctrl_c_while_libraries_are_loaded(tmp_path, torch):
    assert finish(start("-m", "lbgap", "info", **in_place_of_torch(tmp_path, torch))) == INTERRUPTED


def test_ctrl_c_of_a_user_while_libraries_are_loaded(tmp_path):
    here = tmp_path / "here"
    fake = f"import pathlib, time\npathlib.Path({str(here)!r}).touch()\ntime.sleep(60)"
    process = start("-m", "lbgap", "info", **in_place_of_torch(tmp_path, fake))
    while not here.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert finish(process) == INTERRUPTED


def test_a_process_that_ignores_ctrl_c_goes_on(tmp_path):
    fake = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise ImportError('on')"
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nfrom lbgap.cli.app import main; main()"
    assert finish(start("-c", code, "info", **in_place_of_torch(tmp_path, fake))) == (1, "", "lbgap: on\n")


def test_ctrl_c_while_a_command_works_unwinds_it(lbgap_command, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def interrupted():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        finally:
            seen.append("unwound")

    monkeypatch.setattr("lbgap.result.versions", interrupted)
    assert lbgap_command("info") == INTERRUPTED
    assert seen == ["unwound"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_mistyped_command_is_found_without_torch():
    code, out, err = finish(start("-c", LOADED, "trian"))
    assert (code, out) == (2, "loaded: []\n")
    assert re.fullmatch(r"lbgap: No such command 'trian'\. Did you mean 'train'\?\n", err)
