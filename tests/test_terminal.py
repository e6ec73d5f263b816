from lc_ray.terminal import short


def test_of_many_labels_the_likeliest_are_printed():
    few, many = ({f"label {i}": i / count for i in range(count)} for count in (2, 200))
    assert short({"label": "label 1", "probabilities": few}) == "label 1 (label 0 0.00, label 1 0.50)"
    assert short({"label": "x", "probabilities": many}) == "x (label 199 0.99, label 198 0.99, label 197 0.98, label 196 0.98, label 195 0.97, ...)"


def test_labels_are_printed_as_a_label_is():
    odds = {"billing": 0.8, "urgent": 0.1}
    assert short({"labels": ["billing"], "probabilities": odds}) == "billing (billing 0.80, urgent 0.10)"
    assert short({"labels": [], "probabilities": odds}) == "no label (billing 0.80, urgent 0.10)"
    assert short({"value": 3.5}) == "{'value': 3.5}"
