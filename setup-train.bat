@echo off
rem SPDX-License-Identifier: GPL-3.0-or-later
rem Makes an environment for training beside this file, in .venv-train. No host's Python is changed.
rem It can be run again, and from any folder. What it downloads it tells first, and asks.
rem
rem   setup-train.bat [--yes] [--torch BUILD]     auto (fits the GPU's driver), cpu, cu126, ...;
rem                                               default: what the package index has
setlocal
set "HERE=%~dp0"
set "VENV=%HERE%.venv-train"
set "UV=uv"

where uv >nul 2>nul && goto :have_uv
set "UV=%HERE%.venv-uv\bin\uv.exe"
if exist "%UV%" goto :have_uv
echo Fetching uv, which installs Python and packages (about 25 MB, into .venv-uv) ...
rem --target leaves the Python that does the fetching as it is, also ComfyUI's embedded one.
py -3 -m pip install --quiet --target "%HERE%.venv-uv" uv 2>nul && goto :have_uv
python -m pip install --quiet --target "%HERE%.venv-uv" uv 2>nul && goto :have_uv
"%HERE%..\..\..\python_embeded\python.exe" -m pip install --quiet --target "%HERE%.venv-uv" uv 2>nul && goto :have_uv
echo No Python with pip was found to fetch uv with. Install uv, or Python 3.11 or newer, and run this again. 1>&2
exit /b 1

:have_uv
if exist "%VENV%\Scripts\python.exe" goto :have_python
rem Downloads a Python (about 35 MB) only where there is none of these versions.
"%UV%" venv --quiet --python ">=3.11,<3.14" "%VENV%" || goto :failed

:have_python
"%VENV%\Scripts\python.exe" "%HERE%setup_train.py" --uv "%UV%" %*
exit /b %ERRORLEVEL%

:failed
echo uv could not make %VENV%; what it said is above. 1>&2
exit /b 1
