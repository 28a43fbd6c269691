# SPDX-License-Identifier: GPL-3.0-or-later
"""Senders that do not scatter as they say, each with an honest receiver that countersigns what truly came.

Each function is one strategy: it returns what truly happened and what the sender says, and beside it a word
of the reason for which it has to be refused. Unless a strategy says otherwise, there are 1 MB/s for as many
epochs of 60 s as it takes.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from phantommesh.dimensions import SLOTS
from phantommesh.proofs.statement import ZEROS, Plan, Scheduler, Seven
from tests.support.makeproofs import cards_of, node, seven
from tests.unit.proofs.telling import A, Act, B, Story, clock_ms

RATE = 1_000_000
SECONDS = 60.0
OVERHEAD = 1.03  # what WireGuard makes of full packets
BURST = 65_575
ONE: Seven = (1, 0, 0, 0, 0, 0, 0)


def plan_of(scheduler: Scheduler, number: int, cards: Seven | None = None, run: int | None = None) -> Plan:
    run = run or (32 if scheduler == "batch" else 1)
    return Plan(node(A).node_id, node(B).node_id, 1, number, scheduler, run, cards or cards_of(scheduler))


def shared(total: float, shares: Sequence[float]) -> Seven:
    """So many bytes by these shares."""
    whole = sum(shares)
    return seven([round(total * share / whole) for share in shares])


def biased(share: float, dimension: int = 0) -> list[float]:
    """One dimension has this share, the others the rest."""
    return [share if i == dimension else (1 - share) / 6 for i in range(7)]


def convincing(plan: Plan, came: Seven) -> dict[str, Any]:
    """The words for such bytes: packets that fit the plan, with bursts where there is much and the smallest
    packets where there is little, and WireGuard's counts as the receiver will have them."""
    octets = [round(count / OVERHEAD) for count in came]
    cycle = sum(plan.cards)
    if plan.scheduler in ("flow", "flowlet") or not cycle:
        packets = [(count + 1_419) // 1_420 for count in octets]
        return {"packets": seven(packets), "octets": seven(octets), "wire": came}
    n = max(
        (count / BURST * cycle / card for count, card in zip(octets, plan.cards, strict=True) if card),
        default=0,
    )
    # whole cycles, so that counts are exactly as planned
    cycles = max(1, -(-int(n + 1) // cycle))
    packets = [cycles * card for card in plan.cards]
    octets = [max(count, 20 * k) if k else 0 for count, k in zip(octets, packets, strict=True)]
    return {"packets": seven(packets), "octets": seven(octets), "wire": came}


def story(
    epochs: int,
    shares: Callable[[int], Sequence[float]],
    *,
    scheduler: Scheduler = "deck",
    plan: Callable[[int], Plan] | None = None,
    seconds: float = SECONDS,
    rate: float = RATE,
    pause: float = 0.0,
    between: Sequence[int] = ZEROS,
) -> Story:
    """Epochs in which what came by each dimension is as ``shares`` says of each; ``pause`` seconds, in which
    ``between`` comes, between one and the next, of which the sender says nothing."""
    acts, now = list[Act](), 0.0
    for number in range(epochs):
        committed = plan_of(scheduler, number) if plan is None else plan(number)
        came = shared(rate * seconds, shares(number)) if rate else shared(sum(shares(number)), shares(number))
        before = seven(between if number else ZEROS)
        acts.append(
            Act(
                plan=committed, opened=now, closed=now + seconds, came=came, start_ms=clock_ms(now),
                end_ms=clock_ms(now) + round(seconds * 1000), before=before, **convincing(committed, came),
            )
        )  # fmt: skip
        now += seconds + pause
    return acts


Cheat = Callable[[], tuple[Story, str]]
CHEATS: dict[str, Cheat] = {}


def cheat(strategy: Cheat) -> Cheat:
    CHEATS[strategy.__name__] = strategy
    return strategy


def always(shares: Sequence[float]) -> Callable[[int], Sequence[float]]:
    return lambda _: shares


# ---- bytes that do not go as the packets ----


@cheat
def all_bytes_one_way_under_a_deck() -> tuple[Story, str]:
    return story(24, always(biased(0.999))), "came by dimension 0"


@cheat
def a_deck_with_three_bytes_of_ten_one_way() -> tuple[Story, str]:
    return story(60, always(biased(0.3))), "epochs together"


@cheat
def a_quarter_one_way() -> tuple[Story, str]:
    return story(60, always(biased(0.25))), "epochs together"


@cheat
def all_bytes_one_way_under_packet() -> tuple[Story, str]:
    return story(24, always(biased(0.999)), scheduler="packet"), "dimension 0"


@cheat
def small_packets_for_the_others() -> tuple[Story, str]:
    """42/10/10/10/10/10/10."""
    return story(24, always([42, *[10] * 6]), scheduler="packet"), "dimension 0"


@cheat
def all_bytes_one_way_in_runs() -> tuple[Story, str]:
    return story(24, always(biased(0.999)), scheduler="batch"), "dimension 0"


@cheat
def one_flow_that_never_moves() -> tuple[Story, str]:
    return story(60, always(ONE), scheduler="flow"), "dimension 0"


@cheat
def one_flowlet_that_never_moves() -> tuple[Story, str]:
    return story(60, always(ONE), scheduler="flowlet"), "dimension 0"


@cheat
def two_of_seven_dimensions() -> tuple[Story, str]:
    return story(24, always([5, 5, 0.1, 0.1, 0.1, 0.1, 0.1])), "dimension"


@cheat
def one_dimension_left_out() -> tuple[Story, str]:
    return story(60, always([0.1, 1, 1, 1, 1, 1, 1])), "dimension 0"


@cheat
def another_way_in_each_epoch() -> tuple[Story, str]:
    """Over the file each dimension has a seventh."""
    return story(56, lambda number: biased(0.34, number % 7)), "epoch by epoch"


@cheat
def all_in_one_epoch() -> tuple[Story, str]:
    """59 epochs that are honest and all but idle, and one that is neither."""
    honest, other = [20_000] * 7, [60_000_000, *[20_000] * 6]
    return story(60, lambda n: other if n == 30 else honest, rate=0), "came by dimension 0"


# ---- plans ----


@cheat
def a_plan_of_one_dimension() -> tuple[Story, str]:
    one = seven([SLOTS["deck"], *[0] * 6])
    return story(24, always(ONE), plan=lambda n: plan_of("deck", n, one)), "0.500 are asked for"


@cheat
def a_plan_of_next_to_one_dimension() -> tuple[Story, str]:
    most = seven([SLOTS["deck"] - 6, *[1] * 6])
    return story(24, always(most), plan=lambda n: plan_of("deck", n, most)), "0.500 are asked for"


@cheat
def a_plan_of_one_dimension_where_it_counts() -> tuple[Story, str]:
    """The idle epochs have seven."""
    one = seven([SLOTS["deck"], *[0] * 6])
    busy, idle = [60_000_000, 0, 0, 0, 0, 0, 0], [30_000] * 7
    return (
        story(
            40, lambda n: busy if n % 4 == 0 else idle, rate=0,
            plan=lambda n: plan_of("deck", n, one if n % 4 == 0 else None),
        ),
        "0.500 are asked for",
    )  # fmt: skip


@cheat
def a_dimension_without_cards() -> tuple[Story, str]:
    """It carries a tenth all the same."""
    without = cards_of("deck", (0, 1, 1, 1, 1, 1, 1))
    acts = story(24, always(biased(0.1)), plan=lambda n: plan_of("deck", n, without))
    return [replace(act, octets=seven([0, *act.octets[1:]])) for act in acts], "dimension 0"


@cheat
def bursts_that_slipped() -> tuple[Story, str]:
    """A plan without cards, and 32 bursts a second, which is what may slip in while maps are swapped."""
    none = plan_of("deck", 0, ZEROS)
    acts = story(
        120, always([32 * BURST, *[0] * 6]), rate=0, seconds=1.0,
        plan=lambda n: Plan(none.sender, none.receiver, 1, n, "deck", 1, ZEROS),
    )  # fmt: skip
    packets, octets = seven([32, *[0] * 6]), seven([32 * BURST, *[0] * 6])
    return [replace(act, packets=packets, octets=octets) for act in acts], "dimension 0"


@cheat
def late_bytes_of_another_plan() -> tuple[Story, str]:
    """Two plans in turn, and all that came by the wrong one is said to have been late."""
    a, b = cards_of("deck", (20, 1, 1, 1, 1, 1, 1)), cards_of("deck", (1, 1, 1, 1, 1, 1, 20))
    acts = story(40, always(biased(0.85)), plan=lambda n: plan_of("deck", n, b if n % 2 else a))
    late = [act.came for act in acts]
    told = [
        replace(act, late_open=late[i - 1] if i else ZEROS, late_close=late[i]) for i, act in enumerate(acts)
    ]
    return told, "dimension"


# ---- tolerances, once for each epoch ----


@cheat
def a_little_in_each_short_epoch() -> tuple[Story, str]:
    """1.5 MB an epoch one way, with epochs of a second."""
    return story(240, always([1_500_000, *[2_000] * 6]), rate=0, seconds=1.0), "dimension 0"


@cheat
def a_slack_after_each_gap() -> tuple[Story, str]:
    """256 KiB an epoch one way, with a gap of 5 ms after each."""
    acts = story(
        60, always([262_000, *[1_000] * 6]), rate=0, seconds=3.0, pause=0.005, between=[500, 1, 1, 1, 1, 1, 1]
    )
    said = [replace(act, packets=ZEROS, octets=ZEROS, wire=ZEROS) for act in acts]
    return said, "dimension 0"


@cheat
def messages_of_its_own() -> tuple[Story, str]:
    """12 KiB/s one way for an hour, and no packets stated."""
    acts = story(60, always([12 * 1024 * 60, *[0] * 6]), rate=0)
    return [replace(act, packets=ZEROS, octets=ZEROS) for act in acts], "dimension 0"


@cheat
def few_messages_of_its_own() -> tuple[Story, str]:
    """1 KiB/s: within what a node may have to say on one dimension alone."""
    acts = story(60, always([1024 * 60, *[0] * 6]), rate=0)
    return [replace(act, packets=ZEROS, octets=ZEROS) for act in acts], "0.500 are asked for"


@cheat
def what_the_others_lost() -> tuple[Story, str]:
    """A fifth of what it says it sent by the others never left."""
    acts = story(24, always(biased(0.172)))
    even = shared(RATE * SECONDS * 1.03, [1] * 7)
    return [replace(act, wire=even) for act in acts], "dimension"


@cheat
def a_few_long_epochs() -> tuple[Story, str]:
    """As the bounds are wider the fewer epochs there are."""
    return story(3, always(biased(0.3)), seconds=3600.0), "dimension 0"


# ---- what is not covered ----


@cheat
def a_second_an_hour() -> tuple[Story, str]:
    between = [3_599 * RATE, *[0] * 6]
    return story(23, always([1] * 7), seconds=1.0, pause=3_599.0, between=between), "of the time is proved"


@cheat
def a_second_an_hour_with_dates_that_follow() -> tuple[Story, str]:
    acts, _ = a_second_an_hour()
    dated = [
        replace(act, start_ms=clock_ms(number), end_ms=clock_ms(number + 1), signed_ms=clock_ms(act.closed))
        for number, act in enumerate(acts)
    ]
    return dated, "of the time is proved"


@cheat
def a_narrow_window() -> tuple[Story, str]:
    """The receiver is told of each epoch when it is nearly over; the sender says there is no gap."""
    acts = story(60, always([1] * 7), seconds=0.3, pause=2.95, between=[2_950_000, *[0] * 6])
    whole = [
        replace(act, start_ms=clock_ms(act.opened) - 2_950, end_ms=clock_ms(act.opened) + 300) for act in acts
    ]
    return whole, "held the commitments"


@cheat
def a_narrow_window_with_true_dates() -> tuple[Story, str]:
    acts = story(60, always([1] * 7), seconds=0.3, pause=2.95, between=[2_950_000, *[0] * 6])
    return acts, "of the time is proved"


@cheat
def epochs_that_the_peer_is_not_told_of() -> tuple[Story, str]:
    """One of five, in which all goes one way."""
    acts = story(60, lambda n: ONE if n % 5 == 2 else [1] * 7)
    return [
        replace(act, told=False, **honestly(act)) if n % 5 == 2 else act for n, act in enumerate(acts)
    ], "outside of the proved epochs"


@cheat
def totals_that_are_forgotten() -> tuple[Story, str]:
    """The receiver restarts again and again, and the sender knows when."""
    acts = story(40, always([1] * 7), pause=10.0, between=[1_000, *[0] * 6])
    return [replace(act, restarted=n > 0) for n, act in enumerate(acts)], "outside of the proved epochs"


@cheat
def a_burst_between_epochs() -> tuple[Story, str]:
    """For 50 ms after each epoch, in which a fifth of all bytes are sent."""
    between = [15_000_000, *[0] * 6]
    return story(40, always([1] * 7), pause=0.05, between=between), "outside of the proved epochs"


def between_idle_epochs(idle: Callable[[int], Plan], unproved: set[int]) -> Story:
    """A deck whose every other epoch has next to no bytes and a plan of its own; of the busy ones some are
    not proved, and all goes one way there."""
    busy, one_way = [120_000_000 / 7] * 7, [120_000_000, *[0] * 6]
    acts = story(
        40, lambda n: [20_000] * 7 if n % 2 else one_way if n in unproved else busy, rate=0,
        plan=lambda n: idle(n) if n % 2 else plan_of("deck", n),
    )  # fmt: skip
    return [replace(act, told=False, **honestly(act)) if n in unproved else act for n, act in enumerate(acts)]


@cheat
def a_plan_of_one_dimension_for_an_excuse() -> tuple[Story, str]:
    """So that what is not proved could have been by such a plan."""
    one = seven([SLOTS["deck"] - 6, *[1] * 6])
    acts = between_idle_epochs(lambda n: plan_of("deck", n, one), {8, 18, 28})
    return acts, "outside of the proved epochs"


@cheat
def flows_for_an_excuse() -> tuple[Story, str]:
    """So that what is not proved could have been one flow."""
    acts = between_idle_epochs(lambda n: plan_of("flow", n), {8, 18, 28})
    return acts, "outside of the proved epochs"


@cheat
def idle_epochs_to_be_late_for() -> tuple[Story, str]:
    """Each busy epoch is followed by an idle one whose plan has one dimension, and all is said to be late."""
    one = seven([SLOTS["deck"] - 6, *[1] * 6])
    acts = between_idle_epochs(lambda n: plan_of("deck", n, one), set())
    found = list[Act]()
    for number, act in enumerate(acts):
        late = ZEROS if number % 2 else shared(120_000_000, biased(0.25))
        before = found[-1].late_close if found else ZEROS
        said = {} if number % 2 else {"came": late, **convincing(act.plan, late)}
        found.append(replace(act, late_open=before, late_close=late, **said))
    return found, "epochs together"


@cheat
def bytes_said_to_be_late_after_a_plan_without_cards() -> tuple[Story, str]:
    """A tenth of all bytes come one way in six epochs whose plans give nothing, and are called late; epochs
    after them have them in their counts. The others lean the same way, by as little as chance would."""
    empty = range(5, 60, 10)
    part = 0.095 * 60 / len(empty)
    acts = story(
        60,
        lambda n: biased(0.999) if n in empty else biased(0.185),
        plan=lambda n: plan_of("deck", n, ZEROS if n in empty else None),
    )
    told, late = list[Act](), ZEROS
    for number, act in enumerate(acts):
        came = shared(sum(act.came) * (part if number in empty else 0.905 * 60 / 54), act.came)
        if number in empty:
            told.append(
                replace(
                    act, came=came, packets=ZEROS, octets=ZEROS, wire=came, late_open=ZEROS, late_close=came
                )
            )
            late = came
            continue
        said = shared(sum(came) + 0.8 * late[0], [came[0] + 0.8 * late[0], *came[1:]])
        told.append(replace(act, came=came, late_open=late, **{**convincing(act.plan, said), "wire": came}))
        late = ZEROS
    return told, "came by dimension 0"


# ---- dates ----


@cheat
def epochs_of_yesterday() -> tuple[Story, str]:
    back = 23 * 3_600_000
    acts = story(24, always([1] * 7))
    dated = [replace(act, start_ms=act.start_ms - back, end_ms=act.end_ms - back) for act in acts]
    return dated, "word alone"


@cheat
def heads_of_last_week() -> tuple[Story, str]:
    acts = story(24, always([1] * 7))
    return [replace(act, signed_ms=act.end_ms - 6 * 86_400_000) for act in acts], "before its end"


@cheat
def epochs_that_overlap() -> tuple[Story, str]:
    """Each is said to have begun two hours before it did, and to have been so much longer."""
    acts = story(24, always([1] * 7))
    return [replace(act, start_ms=act.start_ms - 7_200_000) for act in acts], "begins before"


@cheat
def commitments_that_come_when_it_is_over() -> tuple[Story, str]:
    """The plan is made to fit; the receiver held it for a second, and so it signs none of it."""
    acts = story(24, always([1] * 7))
    return [replace(act, opened=act.closed - 1.0) for act in acts], "it is the sender's word alone"


def honestly(act: Act) -> dict[str, Any]:
    """What an honest scheduler would have sent in the same epoch."""
    came = shared(sum(act.came), [1] * 7)
    return convincing(act.plan, came)
