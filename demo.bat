@echo off
rem Installs what the demo needs into .venv, then trains a patch and shows what it does.
rem Usage: demo.bat [folder for the results]
setlocal
cd /d "%~dp0"
set "OUT=%~1"
if "%OUT%"=="" set "OUT=demo"

if not exist .venv\Scripts\python.exe (
    py -3 -c "import sys; sys.exit(sys.version_info < (3, 10))" || goto :no_python
    py -3 -m venv .venv || goto :failed
)
echo Installing into .venv (torch makes the first time the longest step) ...
.venv\Scripts\python.exe -m pip install -c constraints.txt -e ".[train]" || goto :failed
.venv\Scripts\python.exe -m safegen_core demo --out "%OUT%" || goto :failed
exit /b 0

:no_python
echo SafeGen needs Python 3.10 or newer with the "py" launcher, as python.org's installer sets it up. 1>&2
exit /b 1

:failed
echo Stopped: the message above says why. 1>&2
exit /b 1
