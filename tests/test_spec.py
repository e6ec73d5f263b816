import json
from datetime import date
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from lc_ray import family, spec, templates
from lc_ray.errors import SpecError
from lc_ray.section import override

SMALL = {"model": {"base": "b"}, "data": {"train": "t.csv", "inputs": [{"column": "text"}], "target": "label"}}


def job(**values):
    return spec.parse(override(SMALL, values))


def test_units_are_parsed_once():
    given = {"data.validation": "1000 rows", "accept": {"max_drop": "3 points", "min_speedup": 0}, "serve": {"batch": {"wait": "5ms"}}}
    parsed = job(**given, **{"serve.max_body": "2MiB"})
    assert (parsed.data.validation, parsed.accept.max_drop, parsed.serve.batch.wait, parsed.serve.max_body) == (1000, 0.03, 0.005, 2 * 2**20)


@pytest.mark.parametrize(("given", "weight"), [(True, 0.5), (False, 0), ("30%", 0.3), (0.7, 0.7)])
def test_distillation_is_a_switch_or_a_weight(given, weight):
    assert job(**{"train.segments": 2, "prune": {"recover": {"distill": given}}}).prune.recover.distill == weight


def test_a_base_in_the_working_folder_is_found_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "weights.safetensors").write_text("")
    named = job(**{"model.base": "./mine", "model.weights": "weights.safetensors", "data.inputs": [{"column": "text", "base": "mine"}]})
    assert (named.model.base, named.data.inputs[0].base) == (str(tmp_path / "mine"),) * 2
    assert named.model.weights == str(tmp_path / "weights.safetensors")
    for name in ("resnet50", "hf-org/mine", "package:carrier/model", "s3://bucket/mine", "./not_there"):
        assert job(**{"model.base": name}).model.base == name


@pytest.mark.parametrize(
    ("values", "rate"),
    [
        ({}, 5e-5),
        ({"model.weights": "random"}, 5e-4),
        ({"model.weights": "random", "train.learning_rate": 5e-5}, 5e-5),
        ({"model.weights": "weights.safetensors"}, 5e-5),
        ({"data.inputs": [{"column": "rooms", "modality": "tabular"}]}, 5e-4),
        ({"data.inputs": [{"column": "rooms", "modality": "tabular"}, {"column": "text"}]}, 5e-5),
    ],
)
def test_where_nothing_is_pretrained_the_learning_rate_is_higher(values, rate):
    assert job(**values).train.learning_rate == job(**values).set({"train.epochs": 5}).train.learning_rate == rate


def test_sections_are_frozen():
    with pytest.raises(ValidationError):
        job().name = "other"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trian": {}}, r"trian: unknown field \(did you mean 'train'\?\)"),
        ({"seed": -1}, r"seed: Input should be greater than or equal to 0"),
        ({"train.epoch": 3}, r"train\.epoch: unknown field \(did you mean 'epochs'\?\)"),
        ({"train.workers.cuont": 3}, r"train\.workers\.cuont: unknown field \(did you mean 'count'\?\)"),
        ({"data.inputs": [{"colum": "text"}]}, r"data\.inputs\.0\.colum: unknown field \(did you mean 'column'\?\)"),
        ({"train.epochs": "many"}, r"train\.epochs: .*got 'many'"),
        ({"train.epochs": 0}, r"train\.epochs"),
        ({"train.batch_size": 30, "train.workers.count": 4}, "30 rows do not divide among 4 workers"),
        ({"train.workers.gpu": 2}, r"train\.workers\.gpu: .* less than or equal to 1"),
        ({"train.workers": {"gpu": 0.5, "count": 2}}, "workers of one model need a GPU each"),
        ({"prune": {}}, "train.segments to at least 2"),
        ({"train.segments": 2, "prune": {"start": 0.5, "end": 0.2}}, "end comes before start"),
        ({"train.segments": 2, "prune": {"parameters": 0.99}}, "95%"),
        ({"search": {"genes": {}}}, "no genes"),
        ({"search": {"genes": {"train.learning_rat": {"uniform": [0, 1]}}}}, r"did you mean 'learning_rate'\?"),
        ({"search": {"genes": {"train.learning_rate": {"log_uniform": [0, 1]}}}}, "low > 0"),
        ({"search": {"genes": {"train.learning_rate": {"normal": [0, 1]}}}}, "expected one of uniform"),
        ({"serve.replicas": {"min": 3, "max": 2}}, "min"),
        ({"data.target": "text"}, "is an input too"),
        ({"data.target": "_row"}, "can't be named _row"),
        ({"data.split": "_file"}, "can't be named _file"),
        ({"data.inputs": [{"column": "a b"}, {"column": "a.b"}]}, "columns must differ"),
        ({"data.inputs": [{"column": "type"}, {"column": "type_"}]}, "columns must differ"),
        ({"data.inputs": []}, r"data\.inputs"),
        ({"data.validation": 0}, "part of the rows"),
        ({"data.validation": "100%"}, "part of the rows"),
        ({"data.rows": 0}, r"data\.rows: .*greater than or equal to 1"),
        ({"data.inputs": [{}]}, "job: data.inputs.0.column: this field is required\n"),
        ({"serve.host": ""}, r"serve\.host: "),
        ({"accept": {"max_drop": "3 apples"}}, "3 points"),
        ({"quantize": "int8"}, r"quantize: expected a section, as \{field: value\}, of the fields kind, calibration \(got 'int8'\)"),
        ({"model.freeze": "embeddings"}, r"model\.freeze: expected a list, as \[a, b\] \(got 'embeddings'\)"),
        ({"accept": {}}, "can't be 1.5 times as fast as the fine-tuned one, as it is that one: add prune or quantize"),
        ({"evaluate.rows": "0 rows"}, r"evaluate\.rows: .*greater than or equal to 1"),
        ({"quantize": {"calibration": 0}}, r"quantize\.calibration: .*greater than or equal to 1"),
        ({"search": {"genes": {"train.learning_rate": {"uniform": [0, 1]}}, "objective": "log_loss"}}, "'log_loss' is better the smaller"),
        ({"name": "x" * 101}, r"name: .*at most 100 characters"),
        ({"name": "../x"}, r"name: .*got '\.\./x'\): of the run and the model: letters, digits"),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(SpecError, match=message):
        job(**values)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(SpecError) as found:
        job(**{"trian": {}, "train.epochs": -1})
    assert "trian" in str(found.value)
    assert "train.epochs" in str(found.value)


def test_missing_fields_are_named():
    with pytest.raises(SpecError, match=r"model: this field is required"):
        spec.parse({"data": SMALL["data"]})


@pytest.mark.parametrize("tree", [None, [], "text", 3])
def test_not_a_mapping(tree):
    with pytest.raises(SpecError, match="mapping"):
        spec.parse(tree)


def test_files(tmp_path):
    file = tmp_path / "job.yaml"
    with pytest.raises(SpecError, match=r"job\.yaml: can't read"):
        spec.read(file)
    file.write_text("model: [", "utf-8")
    with pytest.raises(SpecError, match="not valid YAML"):
        spec.read(file)
    file.write_text(yaml.safe_dump(SMALL), "utf-8")
    assert spec.read(file, {"train.epochs": 7}).train.epochs == 7


def test_override_sets_paths_and_list_items_without_touching_its_argument():
    before = json.dumps(SMALL)
    changed = override(SMALL, {"data.inputs.0.max_length": 8, "train.workers.count": 2})
    assert changed["data"]["inputs"][0] == {"column": "text", "max_length": 8}
    assert changed["train"] == {"workers": {"count": 2}}
    assert json.dumps(SMALL) == before


@pytest.mark.parametrize("path", ["data.inputs.1.max_length", "data.inputs.1", "data.inputs.x.max_length", "data.inputs.-1"])
def test_override_names_an_item_that_is_not_there(path):
    with pytest.raises(SpecError, match=rf"{path}: no item '.*' in a list of 1"):
        override(SMALL, {path: 8})


def test_override_sets_fields_of_an_item_and_beside_dates():
    assert override({"a": ["b"], "day": date(2026, 1, 2)}, {"a.0.c": 1}) == {"a": [{"c": 1}], "day": "2026-01-02"}


def test_a_date_that_is_none_is_a_mistake_of_the_file(tmp_path):
    (tmp_path / "job.yaml").write_text("name: 2026-13-01", "utf-8")
    with pytest.raises(SpecError, match="not valid YAML: month must be in"):
        spec.read(tmp_path / "job.yaml")


def test_of_a_section_that_is_there_twice_none_is_left_out_unseen(tmp_path):
    file, text = tmp_path / "job.yaml", yaml.safe_dump(SMALL)
    file.write_text(f"train: {{epochs: 9}}\n{text}train:\n  batch_size: 8\n", "utf-8")
    with pytest.raises(SpecError, match=r"job\.yaml: not valid YAML: 'train' is there twice\n +in .*, line "):
        spec.read(file)
    file.write_text(f"train: &one {{epochs: 9}}\n{text}search: {{<<: *one, epochs: 1}}\n", "utf-8")
    with pytest.raises(SpecError, match=r"search\.epochs: unknown field"):
        spec.read(file)


def test_digest_depends_on_content_only():
    assert spec.digest({"a": 1, "b": 2}) == spec.digest({"b": 2, "a": 1}) != spec.digest({"a": 1, "b": 3})
    assert spec.digest(job(seed=1)) != spec.digest(job(seed=2))


def test_a_job_survives_json():
    parsed = job(**{"train.segments": 2, "prune": {}, "search": {"genes": {"train.learning_rate": {"uniform": [0.1, 1]}}}})
    assert spec.parse(json.loads(parsed.model_dump_json())) == parsed


@pytest.mark.parametrize(
    ("segments", "start", "starts"),
    [(2, 0.67, [0, 0.67, 1]), (4, 0.5, [0, 0.25, 0.5, 0.75, 1]), (3, 0.9, [0, 0.45, 0.9, 1]), (2, 0.01, [0, 0.01, 1])],
)
def test_one_segment_starts_where_pruning_does(segments, start, starts):
    assert job(**{"train.segments": segments, "prune": {"start": start}}).starts() == pytest.approx(starts)


def test_no_pruning_gives_equal_segments():
    assert job(**{"train.segments": 4}).starts() == pytest.approx([0, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize("file", [*Path("jobs").glob("*.yaml"), *Path("benchmarks").glob("*.yaml")], ids=str)
def test_job_files_of_the_project_are_valid(file):
    assert spec.read(file).name


@pytest.mark.parametrize("name", templates.names())
def test_templates_are_valid_and_commented(name):
    text = templates.text(name)
    assert spec.parse(yaml.safe_load(text)).name
    assert text.startswith("# ")


def test_every_task_has_a_template():
    kinds = {spec.parse(yaml.safe_load(templates.text(name))).task.kind for name in templates.names()}
    assert kinds == set(family.kinds("tasks"))


def test_an_unknown_template_lists_the_known():
    with pytest.raises(SpecError, match="classification"):
        templates.text("juggling")


def test_schema_describes_units():
    properties = spec.JobSpec.model_json_schema()["$defs"]["AcceptSpec"]["properties"]
    assert "3 points" in properties["max_drop"]["examples"]
