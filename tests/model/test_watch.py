"""A deferred Coda: the same stops from fewer decodings, alone, in batches, recorded; and what a warm start keeps."""

from dataclasses import replace

import pytest
import torch
from head_fakes import make_head

from rdvla.bench.machine import PeakMemory
from rdvla.errors import ConfigError
from rdvla.model import recorded
from rdvla.model.decide import decide
from rdvla.model.recorded import RecordedHead
from rdvla.model.recurrent import Context
from rdvla.model.stopping import make_criterion
from rdvla.model.trace import trace
from rdvla.stops import StopRule

BATCH = 6
DEPTH = 12


@pytest.fixture(scope="module")
def head():
    return make_head().requires_grad_(requires_grad=False)


def contexts(batch=BATCH):
    generator = torch.Generator().manual_seed(1)
    return {
        layer: Context(*(torch.randn(batch, tokens, 32, generator=generator) for tokens in (5, 9))) for layer in (1, 2)
    }


def latents(batch=BATCH):
    return torch.randn(batch, 8, 32, generator=torch.Generator().manual_seed(2))


def run(head, conditioning, rule, rows=slice(None), **options):
    return decide(head, conditioning, latents()[rows], make_criterion(rule), rule, **options)


@pytest.fixture(scope="module")
def seen(head):
    """What rules and gates see of the batch, iteration by iteration."""
    return trace(head, head.condition(contexts()), latents(), DEPTH)


@pytest.fixture(scope="module")
def plain(seen):
    """Half of the samples have passed it at the fifth iteration."""
    return StopRule("action_mse", threshold=float(seen["action_mse"][:, 4].median()), max_depth=DEPTH)


def gates(seen):
    """Return gates that open at different iterations for different samples."""
    return [float(seen["latent"][:, column].median()) for column in (1, 2, 3, 5)]


def expected(seen, rule, row):
    """Return where a sample stops, and how often the Coda is asked, by hand."""
    opened = None
    for depth in range(2, rule.max_depth + 1):
        if depth < rule.min_depth:
            continue
        if opened is None and seen["latent"][row, depth - 1] < rule.defer:
            opened = depth
        if opened is not None and seen[rule.name][row, depth - 1] < rule.threshold:
            return depth, depth - opened + 2
    return rule.max_depth, 1 if opened is None else rule.max_depth - opened + 2


@pytest.mark.parametrize("min_depth", [1, 6])
def test_it_stops_where_the_first_open_check_says_so(head, seen, plain, min_depth):
    stops = set()
    for gate in [*gates(seen), 1e-9, 1e9]:
        rule = replace(plain, defer=gate, min_depth=min_depth)
        found = run(head, head.condition(contexts()), rule)
        by_hand = [expected(seen, rule, row) for row in range(BATCH)]
        assert list(zip(found.num_recurrences.tolist(), found.signals["codas"].tolist(), strict=True)) == by_hand
        for row, (depth, _) in enumerate(by_hand):
            fixed = run(head, head.condition(contexts()), StopRule.fixed(depth))
            torch.testing.assert_close(found.actions[row], fixed.actions[row], atol=2e-5, rtol=0)
        stops |= set(by_hand)
    assert len(stops) > 6


def test_an_open_gate_changes_nothing(head, plain):
    always = replace(plain, defer=1e9)
    expected, found = (run(head, head.condition(contexts()), rule) for rule in (plain, always))
    assert found.num_recurrences.tolist() == expected.num_recurrences.tolist()
    assert found.signals["codas"].tolist() == expected.signals["codas"].tolist() == expected.num_recurrences.tolist()
    torch.testing.assert_close(found.actions, expected.actions, atol=2e-5, rtol=0)
    for ours, theirs in zip(found.traces, expected.traces, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-2)


def test_a_sample_does_not_depend_on_its_companions(head, seen, plain):
    rule = replace(plain, defer=gates(seen)[2])
    whole = head.condition(contexts())
    together = run(head, whole, rule)
    assert len(set(together.signals["codas"].tolist())) > 1
    for row in range(BATCH):
        alone = run(head, whole.select(torch.tensor([row])), rule, slice(row, row + 1))
        assert alone.num_recurrences[0] == together.num_recurrences[row]
        assert alone.signals["codas"][0] == together.signals["codas"][row]
        torch.testing.assert_close(alone.actions[0], together.actions[row], atol=2e-5, rtol=0)


@pytest.mark.parametrize("count", [1, BATCH])
def test_a_recorded_head_defers_alike(head, seen, plain, graphs, count):
    size, whole = recorded.padded(count), head.condition(contexts())
    fast = RecordedHead(head, lambda: whole.select(torch.arange(size).clamp(max=BATCH - 1)), size)
    for rule in (plain, replace(plain, defer=gates(seen)[2]), replace(plain, defer=gates(seen)[1])):
        ours = run(fast, fast.condition(count), rule, slice(count))
        theirs = run(head, whole.select(torch.arange(count)), rule, slice(count))
        assert ours.num_recurrences.tolist() == theirs.num_recurrences.tolist()
        assert ours.signals["codas"].tolist() == theirs.signals["codas"].tolist()
        torch.testing.assert_close(ours.actions, theirs.actions, atol=2e-5, rtol=0)
    assert len(graphs) == 3, "core, Coda, and two scratchpads at once"


def test_rules_that_read_no_actions_have_nothing_to_defer():
    with pytest.raises(ConfigError, match="'latent' asks the Coda once"):
        StopRule("latent", defer=0.3)
    with pytest.raises(ConfigError, match="'fixed' asks the Coda once"):
        StopRule("fixed", defer=0.3)
    for gate in (0, -1.0, float("nan"), True, "0.3"):
        with pytest.raises(ConfigError, match="defer must be a relative change above 0"):
            StopRule("action_mse", defer=gate)
    assert str(StopRule("action_mse", 1e-4, defer=0.3)) == "action_mse(0.0001, max 32, defer 0.3)"


def wanted(head, depths, warm_start):
    """Return the scratchpads that warm starts want of samples with these depths, every one kept."""
    conditioning, state, kept = head.condition(contexts()), latents(), []
    for _ in range(max(depths)):
        state = head.core(state, conditioning)
        kept.append(state)
    at = [max(1, depth // 2) if warm_start == "half" else depth for depth in depths]
    return torch.stack([kept[number - 1][row] for row, number in enumerate(at)])


@pytest.mark.parametrize("warm_start", ["half", "end"])
def test_a_warm_start_gets_what_it_would_if_everything_were_kept(head, plain, warm_start):
    for depth in range(1, 10):
        found = run(head, head.condition(contexts()), StopRule.fixed(depth), warm_start=warm_start)
        assert torch.equal(found.carry, wanted(head, [depth] * BATCH, warm_start))
    for rule in (plain, replace(plain, max_depth=7), replace(plain, defer=1e9)):
        found = run(head, head.condition(contexts()), rule, warm_start=warm_start)
        assert len(set(found.num_recurrences.tolist())) > 1
        expected = wanted(head, found.num_recurrences.tolist(), warm_start)
        torch.testing.assert_close(found.carry, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("warm_start", "kept"), [("end", 0), ("half", 6)])
def test_a_warm_start_keeps_a_quarter_of_the_iterations_at_most(head, warm_start, kept):
    """Of 24 iterations `half` may want those from 6 to 12: the seven, one of which is the present one."""

    def peak(start):
        with PeakMemory() as memory:
            run(head, head.condition(contexts()), StopRule.fixed(24), warm_start=start)
        return memory.peak

    assert peak(warm_start) - peak("noise") <= (kept + 2) * latents().nbytes
