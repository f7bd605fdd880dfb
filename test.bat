@echo off
rem Installs the development tools into .venv, then runs ruff, pyright and pytest.
setlocal
cd /d "%~dp0"

if not exist .venv\Scripts\python.exe (
    py -3 -c "import sys; sys.exit(sys.version_info < (3, 10))" || goto :no_python
    py -3 -m venv .venv || goto :failed
)
echo Installing into .venv (torch makes the first time the longest step) ...
.venv\Scripts\python.exe -m pip install -c constraints.txt -e ".[train,detect,dev]" || goto :failed
.venv\Scripts\python.exe -m pip install --no-deps nudenet==3.4.2 || goto :failed
.venv\Scripts\ruff.exe check . || goto :failed
.venv\Scripts\ruff.exe format --check . || goto :failed
.venv\Scripts\pyright.exe --pythonpath .venv\Scripts\python.exe || goto :failed
.venv\Scripts\python.exe -m pytest --numprocesses auto --maxprocesses 8 --dist loadscope || goto :failed
exit /b 0

:no_python
echo SafeGen needs Python 3.10 or newer with the "py" launcher, as python.org's installer sets it up. 1>&2
exit /b 1

:failed
echo Stopped: the message above says why. 1>&2
exit /b 1
