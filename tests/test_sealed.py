"""Sealed files: tensors of any kind to the bit, and a digest that does not change from one release to the next."""

import torch

from sbi_dgm import sealed

WIDE = torch.arange(6.0).reshape(2, 3)
TENSORS = {
    "turned": WIDE.T,
    "part": WIDE[:, 1:],
    "learned": torch.nn.Parameter(WIDE),
    "number": torch.tensor(3),
    "flags": torch.tensor([True, False]),
    "none": torch.empty(0, 2),
    "double": WIDE.double() / 3,
}


def test_what_is_written_is_read_with_its_digest(tmp_path):
    sealed.write(tmp_path / "new" / "file", "said", "é", TENSORS)
    texts, found = sealed.read(tmp_path / "new" / "file")
    assert texts == {"said": "é", "sha256": sealed.digest("é", found)}
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], values) for name, values in TENSORS.items())


def test_the_digest_is_that_of_earlier_files_and_knows_text_names_types_shapes_and_numbers():
    known = "dcbc60e90af357f09c23f59c783ea25f6234048a4825cf7d65a4303037ff4df6"
    assert sealed.digest("text", TENSORS) == known
    for other in (
        {"none": torch.empty(0, 3)},
        {"number": torch.tensor(4)},
        {"number": torch.tensor(3).int()},
        {"another": WIDE},
    ):
        assert sealed.digest("text", TENSORS | other) != known
    assert sealed.digest("texts", TENSORS) != known
