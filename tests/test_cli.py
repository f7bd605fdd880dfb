# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: commands are found, errors become one line, starting stays light."""

from __future__ import annotations

import argparse
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from safegen_core import __version__, cli, commands, errors

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(commands.__path__))


def raising(error: BaseException, debug: bool = False, **more: str) -> argparse.Namespace:
    def run(args: argparse.Namespace) -> int:
        raise error

    return argparse.Namespace(run=run, debug=debug, **more)


@pytest.mark.parametrize("status", [0, 1])
def test_a_commands_status_is_the_programs(status):
    assert cli.execute(argparse.Namespace(run=lambda args: status, debug=False)) == status


def test_an_error_is_one_line_on_stderr_and_status_2(capsys):
    error = errors.PatchError("patch_family", "This patch is for sdxl. Choose another model.")
    assert cli.execute(raising(error)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error [patch_family]: This patch is for sdxl. Choose another model.\n"


def test_debug_adds_the_traceback(capsys):
    assert cli.execute(raising(errors.DataError("data_empty", "Nothing."), debug=True)) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("error [data_empty]: Nothing.\n")


def test_interrupting_is_status_130():
    assert cli.execute(raising(KeyboardInterrupt())) == 130


@pytest.mark.parametrize("module", ["diffusers", "torch.nn", "cryptography"])
def test_a_missing_package_names_its_extra(module, capsys):
    assert cli.execute(raising(ModuleNotFoundError("no", name=module))) == 2
    err = capsys.readouterr().err
    package = module.partition(".")[0]
    assert err.startswith(f"error [missing_package]: This command needs the package '{package}'")
    assert f"[{cli.EXTRAS_OF[package][0]}]" in err


@pytest.mark.parametrize("arguments", [["check", "x"], ["detector", "info"]])
def test_a_commands_own_extra_is_named_if_it_brings_the_package(arguments, capsys):
    extra = cli.build_parser().parse_args(arguments).extra
    for package, told in (("torch", "detect"), ("tqdm", "detect"), ("peft", "train")):
        assert cli.execute(raising(ModuleNotFoundError("no", name=package), extra=extra)) == 2
        assert f"[{told}]" in capsys.readouterr().err


def test_without_a_project_to_ask_for_extras_the_package_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "safegen_core" / "cli.py"))
    assert cli.execute(raising(ModuleNotFoundError("no", name="PIL"))) == 2
    assert capsys.readouterr().err.endswith("run: pip install pillow\n")


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("no", name="safegen_core.gone"), ZeroDivisionError()]
)
def test_a_bug_is_not_dressed_up_as_a_users_mistake(error):
    with pytest.raises(type(error)):
        cli.execute(raising(error))


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["train", "--objective.lamda_m", "1"], "--objective.lamda_m; did you mean --objective.l"),
        (["train", "--objective.lamda_m=1"], "--objective.lamda_m; did you mean --objective.l"),
        (["train", "--no-run.tensorbord"], "did you mean --no-run.tensorboard?"),
        (["doctor", "--jsn"], "did you mean --json?"),
        (["--debgu", "doctor"], "did you mean --debug?"),
        (["patch", "info", "p.safetensors", "--jsno"], "unknown option --jsno"),
        (["doctor", "--qqq"], "unknown option --qqq\n"),
    ],
)
def test_a_mistyped_option_names_the_nearest_and_nothing_runs(argv, told, capsys, monkeypatch):
    monkeypatch.setattr(cli, "execute", lambda args: pytest.fail("it ran"))
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert told in capsys.readouterr().err


def test_what_is_no_option_is_refused_as_well(capsys):
    with pytest.raises(SystemExit):
        cli.main(["doctor", "surplus"])
    assert "surplus" in capsys.readouterr().err


PRINTS = (
    "import argparse, sys; from safegen_core import cli;"
    "run = lambda args: print('x' * {length}) or 0;"
    "sys.exit(cli.execute(argparse.Namespace(run=run, debug=False)))"
)


@pytest.mark.skipif(os.name != "posix", reason="other systems name a closed pipe otherwise")
@pytest.mark.parametrize("length", [1, 1 << 20], ids=["at the end", "at once"])
@pytest.mark.parametrize(
    ("place", "status", "told"),
    [("closed pipe", 1, b""), ("/dev/full", 2, b"error [system_refused]: ")],
)
def test_output_that_cannot_be_written_is_no_traceback(length, place, status, told):
    if place == "closed pipe":
        read, out = os.pipe()
        os.close(read)
    elif os.path.exists(place):
        out = os.open(place, os.O_WRONLY)
    else:
        pytest.skip(f"no {place} here")
    with os.fdopen(out, "wb") as stdout:
        command = [sys.executable, "-c", PRINTS.format(length=length)]
        done = subprocess.run(command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE)
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith(told)
    assert done.stderr.count(b"\n") == (1 if told else 0)


def test_every_file_in_commands_is_a_command():
    listed = cli.build_parser().format_help()
    assert "doctor" in COMMANDS
    for name in COMMANDS:
        found = re.search(rf"^    {name}\s", listed, re.MULTILINE)
        assert found, f"the file of '{name}' in commands/ registers no such command"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: safegen {name}")


def test_without_a_command_the_help_is_shown(capsys):
    assert cli.main([]) == 2
    assert "commands:" in capsys.readouterr().out


def test_help_loads_no_heavy_package():
    program = (
        "import sys; from safegen_core import cli; cli.build_parser().format_help();"
        "print(*{name.partition('.')[0] for name in sys.modules} & "
        "{'torch', 'numpy', 'PIL', 'safetensors', 'diffusers', 'transformers', 'tqdm'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_the_script_runs_isolated_from_any_folder(tmp_path):
    pack = tmp_path / "custom nodes" / "sd-safegen"
    shutil.copytree(
        ROOT / "safegen_core",
        pack / "safegen_core",
        ignore=shutil.ignore_patterns("__pycache__", "weights"),
    )
    shutil.copy(ROOT / "safegen.py", pack)
    done = subprocess.run(
        [sys.executable, "-I", str(pack / "safegen.py"), "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, f"safegen {__version__}\n"), done.stderr


@pytest.mark.parametrize(
    ("module", "argument"),
    [("safegen_core", "no-such-command"), ("safegen_core.train", "--run.oud=x")],
)
def test_the_modules_run_as_programs(module, argument):
    done = subprocess.run(
        [sys.executable, "-m", module, argument], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "usage: safegen" in done.stderr
    assert argument.partition("=")[0] in done.stderr


@pytest.mark.parametrize("command", ["safegen_core", "safegen_core.train"])
def test_a_typo_is_told_without_torch(tmp_path, command):
    file = tmp_path / "run.toml"
    file.write_text("[objective]\nlamda_m = 1.0\n")
    program = (
        "import runpy, sys; sys.modules['torch'] = None; module, *sys.argv[1:] = sys.argv[1:];"
        "runpy.run_module(module, run_name='__main__')"
    )
    arguments = [command, *(["train"] if command == "safegen_core" else []), str(file)]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "did you mean objective.lambda_m?" in done.stderr


def test_training_without_its_packages_names_the_extra(tmp_path):
    program = (
        "import runpy, sys; sys.modules['torch'] = None;"
        "sys.argv[1:] = ['--base.path=b', '--data.folder=d', '--run.out=o'];"
        "runpy.run_module('safegen_core.train', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error [missing_package]" in done.stderr, done.stderr
