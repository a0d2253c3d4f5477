"""The records of the rise-and-fall study give their verdicts again; its tools against independent truths."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch.nn import functional as F  # noqa: N812

from analyses import palette_width
from analyses.cifar_resnet import resnet20
from analyses.compact_records import smallest
from analyses.head_width import split_of_head
from analyses.public_igpt import build_random
from analyses.rise_and_fall import study
from probekit.results.results import Results

RECORDS = Path(__file__).parents[2] / "docs/results/rise-and-fall"
STUDIES = sorted(path.parent for path in RECORDS.glob("*/verdicts.json"))


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_the_records_give_their_verdicts_again(folder: Path) -> None:
    expected = json.loads((folder / "verdicts.json").read_text())
    model = expected["seeds"][0]["series"].split("-")[0]
    again = json.loads(json.dumps(study(Results(folder), model, "random", "pixels")))
    for seed, old in zip(again["seeds"], expected["seeds"], strict=True):
        assert seed["accuracy"] == old["accuracy"]
        assert (seed["chosen"], seed["shape"], seed["counts"]) == (old["chosen"], old["shape"], old["counts"])
        assert seed["conditions"] == old["conditions"]
        # exact tests on the same counts: only the summation order of another SciPy may differ
        assert seed["p"] == pytest.approx(old["p"], rel=1e-6)
    assert again["controls"] == expected["controls"]


def test_the_output_matrix_reads_nothing_of_the_unread_part() -> None:
    generator = torch.Generator().manual_seed(0)
    head_VD = torch.randn(5, 12, generator=generator)
    read_Dr, unread_Ds = split_of_head(head_VD)
    assert read_Dr.shape == (12, 4)  # V - 1: a constant added to all logits changes no probability
    h_BD = torch.randn(7, 12, generator=generator)
    # float32 products of 12 terms: 1e-5 is far above their rounding
    for kept_Dr, same in ((read_Dr, True), (unread_Ds, False)):
        part_BD = h_BD @ kept_Dr @ kept_Dr.T
        close = torch.allclose(F.softmax(part_BD @ head_VD.T, 1), F.softmax(h_BD @ head_VD.T, 1), atol=1e-5)
        assert close is same
    torch.testing.assert_close(F.softmax(h_BD @ unread_Ds @ unread_Ds.T @ head_VD.T, 1), torch.full((7, 5), 0.2))


def test_smallest_type_keeps_the_numbers() -> None:
    for values, kind in (([0, 9], np.uint8), ([0, 9_999], np.uint16), ([70_000], np.uint32), ([], np.uint8)):
        found = smallest(np.array(values, np.int64))
        assert found.dtype == kind
        assert found.tolist() == values


def test_the_public_model_sees_no_later_pixel() -> None:
    model, _ = build_random()
    tokens = torch.randint(16, (2, 784), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 500:] = 15 - changed[:, 500:]
    with torch.no_grad():
        before, after = model.logits(tokens), model.logits(changed)
    # position t predicts pixel t from those before it: logits up to and with 500 stay
    torch.testing.assert_close(before[:, :501], after[:, :501])
    assert not torch.allclose(before[:, 501:], after[:, 501:])


def test_the_residual_network_has_the_published_shapes() -> None:
    model, _ = resnet20()
    # He et al. 2015, table 6: 0.27 M parameters for 20 layers
    assert sum(p.numel() for p in model.parameters()) == 269_722
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_permutation_is_within_seeds() -> None:
    # two seeds of three cells, the falls of each rising with V / D: only one of 3! x 3! permutations is as good
    frame = pd.DataFrame({"D": 16, "V": [4, 16, 64] * 2, "seed": [1] * 3 + [2] * 3, "fall": [0.0, 1, 2, 0.1, 1.1, 2.1]})
    rho, p = palette_width.rank_correlation(frame)
    # ranks of the ratio 1.5, 3.5, 5.5 twice; of the fall 1, 3, 5, 2, 4, 6
    assert rho == pytest.approx(spearmanr(frame.V / frame.D, frame.fall).statistic)
    assert p == pytest.approx(1 / 36, abs=0.002)  # 100,000 draws: a standard deviation of .0005
