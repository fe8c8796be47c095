"""Scenarios: small functions that try features and tell what came of each."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from tests.kernels.features import Cell, Here, State, expected

S = TypeVar("S")


class Cannot(Exception):
    """It is not possible here; the message is the product's own reason."""


class Finding(NamedTuple):
    feature: str
    state: State
    detail: str = ""


def judged(feature: str, wrong: Sequence[str]) -> Finding:
    """It works unless something is wrong."""
    return Finding(feature, State.FAILED if wrong else State.WORKS, "; ".join(wrong))


def cannot(feature: str, why: str | None) -> Finding:
    """Not possible here; without a reason that is a fault."""
    if not why:
        return Finding(feature, State.FAILED, "not possible, and the product does not say why")
    return Finding(feature, State.CANNOT, why)


class Scenario(NamedTuple, Generic[S]):
    """`run` yields one finding for each of `features`, of the subject S that it is tried on."""

    features: tuple[str, ...]
    run: Callable[[S], Iterator[Finding]]


class Scenarios(Generic[S]):
    """Those of one subject, in the order in which they are to run."""

    def __init__(self) -> None:
        self.all: list[Scenario[S]] = []

    def tells(
        self, *features: str
    ) -> Callable[[Callable[[S], Iterator[Finding]]], Callable[[S], Iterator[Finding]]]:
        """Add a scenario that tells of these features."""

        def add(run: Callable[[S], Iterator[Finding]]) -> Callable[[S], Iterator[Finding]]:
            self.all.append(Scenario(features, run))
            return run

        return add


class Runner:
    """Runs scenarios here and reports each cell as soon as it is known.

    only: features that are wanted; empty: all.
    """

    def __init__(self, report: Callable[[Cell], None], only: Sequence[str] = ()) -> None:
        self._report = report
        self._only = only

    def wants(self, features: Sequence[str]) -> bool:
        return not self._only or any(feature in self._only for feature in features)

    def run(self, scenario: Scenario[S], subject: S, here: Here) -> bool:
        """Whether all of its features are as they should be."""
        good, begin = True, time.monotonic()
        for finding in _found(scenario, subject):
            if not self.wants([finding.feature]):
                continue
            now = time.monotonic()
            cell = Cell(
                release=here.release,
                loader=here.loader,
                handoff=here.handoff,
                feature=finding.feature,
                state=finding.state,
                expected=expected(finding.feature, here),
                detail=finding.detail,
                seconds=round(now - begin, 1),
            )
            begin = now
            good = good and not cell.surprising
            self._report(cell)
        return good


def _found(scenario: Scenario[S], subject: S) -> Iterator[Finding]:
    """One finding for each feature, whatever happens."""
    missing = set(scenario.features)
    state, why = State.FAILED, "the scenario did not come to it"
    try:
        for finding in scenario.run(subject):
            missing.discard(finding.feature)
            yield finding
    except Cannot as error:
        state, why = State.CANNOT, str(error)
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        why = f"{type(error).__name__}: {error}"
    yield from (Finding(feature, state, why) for feature in scenario.features if feature in missing)
