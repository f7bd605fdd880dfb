# SPDX-License-Identifier: GPL-3.0-or-later
"""What hosts run after a download, and A1111's family at every start.

Nothing is installed under ComfyUI. For A1111's family, whose users expect a working extension, the
one thing that may be missing is NudeNet's model (11 MB, AGPL-3.0): its wheel is added without its
requirements, so nothing that the host has is replaced. Without a network the image check says what
to do.
"""

NUDENET = "nudenet==3.4.2"


def lacks_a_detector(models):
    """Whether neither NudeNet's wheel nor any detector file is there, nor any that is named."""
    import importlib.util
    import os
    from pathlib import Path

    if importlib.util.find_spec("nudenet") is not None or os.environ.get("SAFEGEN_DETECTORS"):
        return False
    return not any(Path(models, "safegen", "detectors").glob("*.onnx"))


def main():
    """Add NudeNet's model where an A1111 lacks any detector."""
    try:
        import launch  # A1111's family; this process runs in its folder
        from modules.paths_internal import models_path
    except ImportError:
        return
    if not lacks_a_detector(models_path):
        return
    try:
        launch.run_pip(f"install --no-deps {NUDENET}", "NudeNet's model for SafeGen's image check")
    except Exception:  # it has told its reasons; a start without a network goes on
        print("SafeGen: NudeNet's model could not be installed. The image check says what to do.")


if __name__ == "__main__":
    main()
