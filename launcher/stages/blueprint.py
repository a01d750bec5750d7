"""blueprint: FOLDER/config.json -> FOLDER/blueprint.json, or problems.json where the model cannot be planned. No weights.

`launcher plan` starts it for a model whose family the plan has no table of: `python -m launcher.stages blueprint FOLDER`.
"""

from __future__ import annotations

from pathlib import Path

import transformers

from launcher.errors import EXIT_DONE, EXIT_USAGE, LauncherError
from launcher.rundir.folder import read_json, write_json
from launcher.train.blueprint import make_blueprint


def main(argv: list[str]) -> int:
    """Exit code, 0 where it was written."""
    if len(argv) != 1:
        return EXIT_USAGE
    folder = Path(argv[0])
    transformers.logging.set_verbosity_error()  # of tokens outside of small vocabularies, and the like
    try:
        write_json(
            folder / "blueprint.json", make_blueprint(read_json(folder / "config.json"), file=str(folder / "config.json"))
        )
    except LauncherError as error:
        write_json(folder / "problems.json", {"problems": [problem.as_dict() for problem in error.problems]})
        return error.exit_code
    return EXIT_DONE
