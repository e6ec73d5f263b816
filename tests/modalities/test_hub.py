"""Models of strangers: code that comes with one does not run, whatever there is to be read on standard input."""

import io
import json
import re
from pathlib import Path

import pytest

import lc_ray
from lc_ray.errors import ModelError
from lc_ray.modalities import audio, text
from lc_ray.spec import InputSpec

CODE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nimport transformers\nclass Own(transformers.{kind}): model_type = 'own'\n"


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """stranger(kind of class, file, its content) → the folder of a model whose code notes that it ran."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))  # rows of `lc-ray predict MODEL -`

    def make(kind, file, content):
        (tmp_path / "own.py").write_text(CODE.format(kind=kind))
        (tmp_path / file).write_text(json.dumps(content))
        return str(tmp_path)

    yield make
    assert not list(tmp_path.rglob("ran"))


def test_of_a_tokenizer(stranger):
    source = stranger("BertTokenizer", "tokenizer_config.json", {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}})
    with pytest.raises(ModelError, match="custom code"):
        text.Modality(InputSpec(column="text"), source)


def test_of_a_feature_extractor(stranger):
    content = {"feature_extractor_type": "Own", "auto_map": {"AutoFeatureExtractor": "own.Own"}}
    source = stranger("Wav2Vec2FeatureExtractor", "preprocessor_config.json", content)
    with pytest.raises(ModelError, match="custom code"):
        audio.Modality(InputSpec(column="sound", modality="audio"), source)


def test_of_a_base_model(stranger):
    source = stranger("BertConfig", "config.json", {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}})
    with pytest.raises(ModelError, match="custom code"):
        text.Encoder.pretrained(InputSpec(column="text"), source)


def test_that_a_manifest_names(stranger):
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    bare = next(kind for kind, made in CONFIG_MAPPING.items() if made not in MODEL_MAPPING)
    source = stranger("BertModel", "config.json", {})
    with pytest.raises(ValueError, match="custom code"):
        text.Encoder.rebuild({"model_type": bare, "auto_map": {"AutoModel": f"{source}--own.Own"}})


def test_all_that_could_ask_is_told():
    """Of each kind of model there is a call of its own."""
    for file in Path(lc_ray.__file__).parent.rglob("*.py"):
        for line in file.read_text("utf-8").splitlines():
            asks = re.search(r"\bAuto\w+\.from_(pretrained|config)\(", line)
            assert not asks or "trust_remote_code=False" in line, f"{file.name}: {line.strip()}"
