"""Runs one training stage in a process of its own, so that it can be killed: python child.py STORE KEY STAGE JSON."""

import json
import sys
from pathlib import Path


def main() -> None:
    root, key, name, config = sys.argv[1:]
    from align.artifact import Store, begin, write_json
    from align.dpo import DPO
    from align.sft import SFT

    stage = {"sft": SFT, "dpo": DPO}[name].model_validate(json.loads(config))
    with begin(Store(Path(root)), name, key) as out:
        metrics = stage.run(out)
        write_json(out.path / "metrics.json", metrics)


if __name__ == "__main__":
    main()
