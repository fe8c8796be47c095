"""A policy file is read again while the agent runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from collector.errors import PolicyError
from collector.policy.holder import PolicyHolder
from collector.policy.types import HoldSettings, Policy, StoreSettings


def test_a_good_file_takes_effect(tmp_path: Path) -> None:
    # GIVEN a policy in force
    file = tmp_path / "p.yaml"
    file.write_text("defaults: {capture: stacks}")
    holder = PolicyHolder(file)

    # WHEN its file changes and is read again
    file.write_text("defaults: {capture: threads}")
    taken = holder.reload()

    # THEN the new one is in force
    assert (taken, str(holder.policy.defaults.capture)) == (True, "threads")
    assert (holder.error, holder.needs_restart) == (None, ())


def test_a_bad_file_leaves_the_old_policy_in_force(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("defaults: {capture: stacks}")
    holder = PolicyHolder(file)
    before = holder.policy

    # WHEN the file is broken, then gone
    file.write_text("defaults: {capture: al}")
    assert not holder.reload()
    broken = str(holder.error)
    file.unlink()
    assert not holder.reload()

    # THEN the old policy is untouched and the errors are told
    assert holder.policy is before
    assert broken == (
        f'{file}:1: defaults.capture: "al" is not one of full, stacks, threads, record, none'
    )
    assert str(holder.error) == f"{file}: cannot be read: No such file or directory"

    # AND a good file clears the error
    file.write_text("")
    assert holder.reload()
    assert (holder.policy, holder.error) == (Policy(source=str(file)), None)


def test_what_only_a_restart_can_change_keeps_its_value_and_is_named(tmp_path: Path) -> None:
    # GIVEN a running agent
    file = tmp_path / "p.yaml"
    file.write_text("store: {path: /srv/a}\nhold: {backend: pipe}\n")
    holder = PolicyHolder(file)
    at_start = holder.policy

    # WHEN everything in its file changes
    file.write_text(
        "store: {path: /srv/b, min_free: 5GiB}\nhold: {backend: socket, takeover: true}\n"
        "metrics: {listen: off}\ncapture: {workers: 9, queue: 9}\nrelease: {max_pins: 9}\n"
    )
    assert holder.reload()

    # THEN what can be applied is, and the rest is named
    assert holder.policy == replace(
        at_start,
        store=StoreSettings(path=Path("/srv/a"), min_free=5 << 30),
        hold=HoldSettings(backend=at_start.hold.backend),
        release=replace(at_start.release, max_pins=9),
    )
    assert holder.needs_restart == (
        "store.path",
        "metrics.listen",
        "hold.backend",
        "hold.takeover",
        "capture.workers",
        "capture.queue",
    )

    # AND going back to the first file leaves nothing to be done
    file.write_text("store: {path: /srv/a}\nhold: {backend: pipe}\n")
    assert holder.reload()
    assert (holder.policy, holder.needs_restart) == (at_start, ())


def test_without_a_file_the_built_in_policy_holds() -> None:
    holder = PolicyHolder(None)
    assert holder.reload()
    assert holder.policy == Policy()


def test_a_bad_file_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError):
        PolicyHolder(tmp_path / "missing.yaml")
