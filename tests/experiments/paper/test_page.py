"""The page of the paper's experiments, from made-up results whose numbers can be worked out by hand."""

import pytest
import torch

from lbgap import datasets
from lbgap.experiments.paper.conjectures import conjectures
from lbgap.experiments.paper.pictures import figures
from lbgap.experiments.paper.remedies import REMEDIES, epochs_within, filled, lacking, name_of
from lbgap.experiments.paper.summary import tables
from lbgap.experiments.paper.treated import remedy_tables
from lbgap.problem.samples import Data, Split
from lbgap.training.remedies.choose import parse_remedy


def samples(count, *shape, name="mnist1d"):
    split = Split(torch.zeros(count, *shape), torch.zeros(count, dtype=torch.int64))
    return Data(name, split, split, 10)


def run(accuracies, *, batch=32, count=320, losses=None, distances=None, epoch=None):
    losses, distances = losses or [0.1] * len(accuracies), distances or [1.0] * len(accuracies)
    metrics = [
        {"epoch": number, "train_loss": loss, "train_accuracy": 100.0, "test_accuracy": accuracy, "distance": distance}
        for number, (accuracy, loss, distance) in enumerate(zip(accuracies, losses, distances, strict=True), 1)
    ]
    return {"batch": batch, "samples": count, "metrics": metrics, "epoch": epoch or len(metrics)}


def sharpness(row, regime, seed, phi):
    one = {"space": "full space", "epsilon": 1e-3, "method": "vertex", "value": phi}
    return {"part": "sharpness", "row": row, "regime": regime, "seed": seed, "sharpness": [one]}


def stored(runs, parts=(), *, rows=("ROW",), trials=2, experiments=(), **plan):
    rows = [{"name": name} for name in rows]
    settings = {
        "rows": rows,
        "trials": trials,
        "updates": 100,
        "first_seed": 0,
        "epsilons": [1e-3],
        "batch_norm": "eval",
    }
    return {
        "plan": settings | {"data_dir": None} | plan,
        "runs": runs,
        "parts": list(parts),
        "experiments": experiments,
    }


class TestTrials:
    """Fewer trials than planned, or of different lengths, are told and not silently averaged."""

    RUNS = {  # noqa: RUF012
        ("MLP-DIGITS", "SB", 0): run([60.0, 70.0], distances=[1.0, 2.0]),
        ("MLP-DIGITS", "SB", 1): run([70.0, 90.0, 30.0], distances=[1.0, 2.0, 4.0]),
        ("MLP-DIGITS", "LB", 1): run([50.0, 60.0], distances=[1.0, None]),
    }

    def test_tables(self):
        parts = [sharpness("MLP-DIGITS", *one) for one in (("SB", 0, 3.0), ("SB", 1, 5.0), ("LB", 1, 7.0))]
        wanted = ("table2", "table3", "distance")
        found = dict(tables(stored(self.RUNS, parts, rows=["MLP-DIGITS"], experiments=wanted)))
        assert found["table2"].rows[0][1:] == ("100 ± 0", "100 (1 of 2)", "50 ± 28", "60 (1 of 2)")
        assert found["table3"].rows[0][2:6] == ("4 ± 1.4", "7 (1 of 2)", "0 of 2", "0 of 2")
        assert [row[2] for row in found["distance"].rows] == ["3 ± 1.4", "1 of 1 not finite (1 of 2)"]
        assert found["distance"].rows[1][3] == "0 of 2"

    def test_means_go_on_to_the_longest_training(self):
        [(name, caption, figure)] = figures(stored(self.RUNS, rows=["MLP-DIGITS"], experiments=["figure2"]))
        assert name == "figure2-MLP-DIGITS"
        assert caption.endswith("mean over trials: of SB 2 to epoch 2, 1 to epoch 3; of LB 1 to epoch 2")
        small, large = figure.axes[1].lines
        assert (small.get_xdata().tolist(), small.get_ydata().tolist()) == ([1, 2, 3], [65.0, 80.0, 30.0])
        assert large.get_ydata().tolist() == [50.0, 60.0]

    def test_trainings_of_one_length_need_no_note(self):
        runs = {("ROW", regime, seed): run([60.0]) for regime in ("SB", "LB") for seed in (0, 1)}
        [(_, caption, figure)] = figures(stored(runs, experiments=["figure2"]))
        assert caption == "ROW: accuracy while training (figure 2), mean over trials"
        assert [line.get_marker() for line in figure.axes[1].lines] == ["o", "s"]  # one epoch makes no line


class TestRemedies:
    def test_gaps_are_filled_from_network_and_data(self):
        data = samples(4000, 40)
        forms = {name_of(form): filled(form, data, 32, 400, 2500) for form in REMEDIES}
        assert forms["augment"] == "augment:shift=0.1,shape=40"
        assert forms["batches"] == "batches:11=400"  # 10 epochs of 125 batches are half
        assert forms["grow"] == "grow:every=10,limit=400"  # 125 + 63 + 32 + 16 + 10 = 246 batches go through all sizes
        assert forms["ghost"] == "ghost:size=32"
        assert forms["local-sgd"] == "local-sgd:workers=12"
        assert forms["swa"] == "swa"
        pytest.importorskip("sklearn")
        shapes = [
            filled("augment:shift=0.1{shape}", d, 16, 100, 10) for d in (datasets.digits(), samples(9, 3, 32, 32))
        ]
        assert shapes == ["augment:shift=0.1,shape=1x8x8", "augment:shift=0.1"]

    def test_epochs_come_nearest_to_the_updates(self):
        data = samples(100, 40)
        assert epochs_within(parse_remedy("swa"), data, 10, 24) == 2
        assert epochs_within(parse_remedy("swa"), data, 10, 26) == 3
        assert epochs_within(parse_remedy("swa"), data, 10, 1) == 1
        assert epochs_within(parse_remedy("batches:3=50"), data, 10, 26) == 5  # 10 + 10 + 2 + 2 + 2
        assert epochs_within(parse_remedy("local-sgd:workers=3"), data, 10, 10) == 3

    def test_what_does_not_fit_is_left_out(self):
        assert lacking(parse_remedy("ghost"), samples(9, 40), True) is None
        assert lacking(parse_remedy("ghost"), samples(9, 40), False) == "the network has no batch-norm"
        assert "flat" in lacking(parse_remedy("augment"), samples(9, 360, name="timit"), True)
        assert lacking(parse_remedy("augment"), samples(9, 3, 8, 8, name="own"), True) is None

    def test_the_table(self):
        def part(name, seed, **found):
            return {"part": "remedy", "row": "ROW", "regime": "", "seed": seed, "name": name, "remedy": name, **found}

        def tried(name, seed, accuracy, phi):
            metrics = {"train_loss": 0.5, "test_accuracy": accuracy}
            return part(name, seed, updates=30 + seed, metrics=metrics, value=phi)

        runs = {
            ("ROW", "SB", 0): run([60.0, 70.0]),
            ("ROW", "SB", 1): run([60.0, 74.0]),
            ("ROW", "LB", 0): run([60.0, 62.0], batch=160, losses=[1.0, 0.25]),
            ("ROW", "LB", 1): run([60.0, 64.0], batch=160, losses=[1.0, 0.75]),
            ("ROW", "SB", 2): run([1.0]),
        }
        parts = [
            *(sharpness("ROW", *one) for one in (("SB", 0, 1.0), ("SB", 1, 3.0), ("LB", 0, 100.0), ("LB", 1, None))),
            *(tried("swa", seed, *found) for seed, found in enumerate([(68.0, 10.0), (75.0, 20.0)])),
            tried("sam", 0, 69.0, 5.0),
            part("sam", 1, error="the loss became nan."),
            *(part("ghost", seed, skipped="the network has no batch-norm") for seed in (0, 1)),
        ]
        plan = {"remedies": ["swa", "sam", "ghost"], "remedy_trials": 2}
        [(name, table)] = remedy_tables(stored(runs, parts, trials=3, **plan))
        assert name == "remedies-ROW"
        assert table.columns[1:-1] == (
            "updates",
            "training loss",
            "test accuracy",
            "gap to SB",
            "phi at 0.001",
            "trials",
        )
        assert table.rows == (
            ("none, SB", "20", "0.1", "72 ± 2.8", "", "2 ± 1.4", "2", ""),
            ("none, LB", "4", "0.5", "63 ± 1.4", "9 ± 1.4", "1 of 2 not finite", "2", ""),
            ("swa", "30 to 31", "0.5", "71.5 ± 4.9", "0.5 ± 2.1", "15 ± 7.1", "2", "swa"),
            ("sam", "30", "0.5", "69", "1", "5", "1 of 2, 1 failed", "sam"),
        )
        for sentence in (
            "From the first 2 of 3 starts.",
            "Without ghost: the network has no batch-norm.",
            "sam from seed 1 failed: the loss became nan.",
            "Few starts rank nothing, and no setting was tuned.",
        ):
            assert sentence in table.note
        assert "nan.." not in table.note


class TestConjectures:
    def sentences(self, results, number):
        return list(conjectures(results))[number].sentences

    @pytest.mark.parametrize(
        ("small", "large", "sentence"),
        [
            # Best 80 and 70, 76 and 66: 10 points instead of 15 and 9.
            (
                ([80.0, 75.0], [76.0, 75.0]),
                ([70.0, 60.0], [66.0, 66.0]),
                "ROW: stopped at its best test epoch, SB reaches 78 % and LB 68 %; LB is still lower in 2 of 2 trials, "
                "at the end it is in 2, and the mean gap is 10 instead of 12 points. This speaks against it.",
            ),
            (([80.0], [76.0]), ([80.0, 60.0], [77.0, 70.0]), "This speaks for it."),
            (([80.0], [76.0]), ([80.0, 60.0], [70.0]), "lower in 1 of 2 trials, at the end it is in 2, and the mean"),
            (([80.0], [76.0]), ([80.0, 60.0], [70.0]), "This does not decide it."),
            (([80.0], [76.0]), ([82.0, 60.0], [70.0, 80.0]), "This does not decide it."),
            (([80.0],), ([78.0, 20.0],), "is 2 instead of 60 points. This does not decide it, by one start."),
        ],
    )
    def test_over_fitting(self, small, large, sentence):
        runs = {
            ("ROW", regime, seed): run(one)
            for regime, found in (("SB", small), ("LB", large))
            for seed, one in enumerate(found)
        }
        assert sentence in self.sentences(stored(runs), 0)[0]

    @pytest.mark.parametrize(
        ("small", "large", "says"),
        [
            ((-0.5, 20.0), (-4.0, 80.0), "speaks for it"),  # 2.5 and 5 %
            ((-0.5, 20.0), (-2.0, 80.0), "speaks against it"),  # 2.5 and 2.5 %
            ((-0.5, 20.0), (-3.0, 80.0), "does not decide it"),  # 2.5 and 3.75 %
            ((-0.0, 20.0), (-0.4, 80.0), "speaks against it"),  # 0 and 0.5 %
            ((0.5, 20.0), (0.4, 80.0), "speaks against it"),
        ],
    )
    def test_saddle_points(self, small, large, says):
        parts = [
            {
                "part": "spectrum",
                "row": "ROW",
                "regime": regime,
                # The lowest node has no weight: it lies beyond the end of a Krylov space.
                "density": {"nodes": [[-99.0, low, 1.0]], "weights": [[0.0, 0.5, 0.5]], "known": [high]},
                "mass": {"details": {"negative_share": 0.125}},
            }
            for regime, (low, high) in (("SB", small), ("LB", large))
        ]
        [sentence] = self.sentences(stored({}, parts), 1)
        assert sentence.endswith(f"This {says}, by one start.")
        if says == "speaks for it":
            assert "at SB the lowest Ritz value is -0.5 and the largest 20 (2.5 %)" in sentence
            assert "at LB the lowest Ritz value is -4 and the largest 80 (5 %), and negative ones hold 12 %" in sentence

    def test_distances(self):
        runs = {
            ("ROW", "SB", 0): run([1.0, 1.0], distances=[3.0, 6.0]),
            ("ROW", "SB", 1): run([1.0, 1.0], distances=[3.0, 8.0]),
            ("ROW", "LB", 0): run([1.0], distances=[2.0]),
            ("ROW", "LB", 1): run([1.0], distances=[4.0]),
        }
        sentence = self.sentences(stored(runs), 2)[0]
        assert sentence == (
            "ROW: SB ends 2 to 3 times as far from the start as LB (the paper: 3 to 10), further in 2 of 2 trials. "
            "This speaks for it."
        )
        runs["ROW", "LB", 0] = run([1.0, 1.0], distances=[2.0, 12.0])
        runs["ROW", "LB", 1] = run([1.0, 1.0], distances=[2.0, 4.0])
        sentence = self.sentences(stored(runs), 2)[0]
        assert "SB ends 0.5 to 2 times as far" in sentence
        # In log 2: (3 + 5) / 2 and (10 + 2) / 2.
        assert "grows by 5.77 (SB) and 8.66 (LB) a unit of log epoch. This does not decide it." in sentence

    @pytest.mark.parametrize(
        ("small", "says"),
        [
            (11.0, "speaks for it"),
            (10.5, "does not decide it"),
            (10.0, "speaks against it"),
            (9.0, "speaks against it"),
        ],
    )
    def test_a_distance_that_hardly_differs_decides_nothing(self, small, says):
        runs = {("ROW", "SB", 0): run([1.0], distances=[small]), ("ROW", "LB", 0): run([1.0], distances=[10.0])}
        assert self.sentences(stored(runs), 2)[0].endswith(f"This {says}, by one start.")

    @pytest.mark.parametrize(
        ("latest", "says"),
        [((5.0, 65.0), "speaks for"), ((5.0, 55.0), "does not decide"), ((50.0, 55.0), "speaks against")],
    )
    def test_warm_starts(self, latest, says):
        def part(number, phi, accuracy):
            found = {"value": phi, "metrics": {"test_accuracy": accuracy}, "epsilon": 1e-3}
            return {"part": "warm", "row": "ROW", "seed": 0, "number": number, **found}

        parts = [part(9, *latest), part(4, 7.0, 60.0), part(1, 40.0, 58.0), sharpness("ROW", "LB", 0, 30.0)]
        sentence = self.sentences(stored({("ROW", "LB", 0): run([60.0])}, parts), 2)[1]
        assert sentence == (
            "ROW: phi at epsilon 0.001 and test accuracy of LB: alone 30 % and 60 %; after 1 epoch of SB 40 % and "
            f"58 %; after 9 epochs of SB {latest[0]:g} % and {latest[1]:g} %. This {says} it, by one start."
        )

    @pytest.mark.parametrize(
        ("distances", "middle", "says"),
        [
            ((9.0, 3.0, 8.0), 1.75, "rises 1.5 above that of the higher end. This speaks for it"),
            ((9.0, 3.0, 8.0), 0.2, "does not rise above that of the higher end. This does not decide it"),
            ((9.0, 3.0, 2.0), 1.75, "This does not decide it"),
            ((3.0, 9.0, 10.0), 1.75, "This speaks against it"),
            ((9.0, 3.0, 8.0), None, "rises inf above that of the higher end. This speaks for it"),
        ],
    )
    def test_the_closest_minimizer(self, distances, middle, says):
        small, large, between = distances
        line = {"alphas": [-0.5, 0.0, 0.5, 1.0, 1.5], "train_loss": [9.0, 0.25, middle, 0.125, 9.0]}
        part = {"part": "line", "row": "ROW", "seed": 0, "line": line, "distance": between}
        runs = {("ROW", "SB", 0): run([1.0], distances=[small]), ("ROW", "LB", 0): run([1.0], distances=[large])}
        [sentence] = self.sentences(stored(runs, [part]), 3)
        assert says in sentence
        assert sentence.startswith(
            f"ROW: from the start to LB it is {large:g}, to SB {small:g}, and from one to the other {between:g}; on"
        )

    def test_what_was_not_run_is_said_with_its_command(self):
        found = list(conjectures(stored({}, rows=["A", "B"], trials=3, data_dir="data", first_seed=2)))
        assert [one.name for one in found] == ["over-fitting", "saddle points", "exploration", "closest minimizer"]
        options = "--trials 3 --updates 100 --seed 2 --data-dir data --out THIS_FOLDER measures it."
        assert found[1].sentences == tuple(
            f"{row}: not measured; lbgap paper spectrum --row {row} {options}" for row in ("A", "B")
        )
        wanted = [[sentence.split()[5] for sentence in one.sentences if "B:" not in sentence] for one in found]
        assert wanted == [["table2"], ["spectrum"], ["distance", "figure5"], ["figure3"]]
