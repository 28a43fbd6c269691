# SPDX-License-Identifier: GPL-3.0-or-later
"""Attack captures: a random forest over an attacker's features, trained and tested on different repetitions.

The forest is k-fingerprinting's (Hayes and Danezis, 2016, closed world: the forest's vote) and its leaves
are the fingerprints of the paper's nearest-neighbour variant. Only these two need scikit-learn.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.traffic.fingerprint import Features, all_groups, no_lengths, times
from benchmarks.traffic.traces import Visit, folds

# Tuning.
TREES = 100
FOLDS = 4
NEIGHBOURS = 3  # the paper's k


@dataclass(frozen=True, slots=True)
class Sample:
    """What one observer saw of one load, as features."""

    page: int
    repetition: int
    path: int
    features: list[float]


# (training features, training labels, test features) -> guessed labels
Classifier = Callable[[list[list[float]], list[int], list[list[float]]], Sequence[int]]


def samples_of_paths(visits: Iterable[Visit], paths: Iterable[int], features: Features) -> list[Sample]:
    """One sample a load and path: an observer has one path, but may train on any. To see nothing is one."""
    paths = list(paths)
    return [
        Sample(visit.page, visit.repetition, path, features(visit.on(path)))
        for visit in visits
        for path in paths
    ]


def samples_of_all(visits: Iterable[Visit], features: Features) -> list[Sample]:
    """One sample a load: an observer of every path at once."""
    return [Sample(visit.page, visit.repetition, 0, features(visit.packets)) for visit in visits]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of the loads whose page was guessed: of all, of the most betrayed path, of each fold."""

    mean: float
    worst_path: float
    folds: list[float]


def judge(samples: Sequence[Sample], classify: Classifier, number: int = FOLDS) -> Accuracy:
    """Cross-validate: each repetition is tested once, by a classifier that saw nothing of it on any path."""
    hits: dict[int, list[bool]] = {}
    by_fold = []
    for tested in folds((sample.repetition for sample in samples), number):
        train = [sample for sample in samples if sample.repetition not in tested]
        test = [sample for sample in samples if sample.repetition in tested]
        guesses = classify(
            [sample.features for sample in train],
            [sample.page for sample in train],
            [sample.features for sample in test],
        )
        right = [guess == sample.page for guess, sample in zip(guesses, test, strict=True)]
        by_fold.append(round(statistics.fmean(right), 4))
        for sample, hit in zip(test, right, strict=True):
            hits.setdefault(sample.path, []).append(hit)
    return Accuracy(
        mean=round(statistics.fmean(hit for path in hits.values() for hit in path), 4),
        worst_path=round(max(statistics.fmean(path) for path in hits.values()), 4),
        folds=by_fold,
    )


def shuffled(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Give the samples each other's pages, as a control: what is guessed then is chance, or a leak."""
    pages = [sample.page for sample in samples]
    random.Random(seed).shuffle(pages)
    return [
        Sample(page, sample.repetition, sample.path, sample.features)
        for page, sample in zip(pages, samples, strict=True)
    ]


def forest(seed: int, trees: int = TREES) -> Classifier:
    """A random forest's vote."""
    from sklearn.ensemble import RandomForestClassifier

    def classify(train: list[list[float]], labels: list[int], test: list[list[float]]) -> Sequence[int]:
        model = RandomForestClassifier(trees, random_state=seed)
        model.fit(train, labels)
        return [int(guess) for guess in model.predict(test)]

    return classify


def leaves(seed: int, trees: int = TREES) -> Classifier:
    """The page of most of the nearest neighbours, where a load is near if it falls into the same leaves."""
    import numpy as np
    from sklearn.ensemble import RandomForestClassifier

    def classify(train: list[list[float]], labels: list[int], test: list[list[float]]) -> Sequence[int]:
        model = RandomForestClassifier(trees, random_state=seed)
        model.fit(train, labels)
        known, asked = model.apply(train), model.apply(test)
        guesses = []
        for leaf in asked:
            near = np.argsort((known != leaf).sum(axis=1), kind="stable")[:NEIGHBOURS]
            votes = [labels[int(place)] for place in near]
            guesses.append(max(votes, key=votes.count))  # a tie: the nearest
        return guesses

    return classify


ATTACKERS: dict[str, tuple[Features, Callable[[int], Classifier]]] = {
    "kfp": (all_groups, forest),
    "kfp_leaves": (all_groups, leaves),
    "kfp_no_lengths": (no_lengths, forest),
    "timing": (times, forest),
}
