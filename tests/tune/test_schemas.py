"""The published JSON schemas are those of the code, and the files that come along fit them."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from voicechat_tune.schemas import write_schemas

TUNE = Path(__file__).parents[2] / "tune"
FILES = [(path, kind) for kind in ("recipe", "sweep", "comparison") for path in sorted(TUNE.glob(f"{kind}s/*.yaml"))]


def test_the_schemas_are_up_to_date(tmp_path):
    for path in write_schemas(tmp_path):
        committed = TUNE / "schemas" / path.name
        assert json.loads(committed.read_text()) == json.loads(path.read_text()), (
            "run voicechat schema --out tune/schemas"
        )


@pytest.mark.parametrize(("path", "kind"), FILES, ids=lambda value: getattr(value, "name", value))
def test_every_file_names_its_schema_and_fits_it(path, kind):
    text = path.read_text()
    assert text.startswith(f"# yaml-language-server: $schema=../schemas/{kind}.json\n")
    schema = json.loads((TUNE / "schemas" / f"{kind}.json").read_text())
    jsonschema.validate(yaml.safe_load(text), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text) | {"nmae": 1}, schema)
