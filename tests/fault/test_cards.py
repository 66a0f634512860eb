"""A fleet with a worker of two cards, of which one is lost in the midst of its jobs: every card is a
worker of its own to the coordinator; what the lost one had goes to the other, which goes on, and
nothing is lost or drawn twice. The cards are emulated (a build with ATELIER_CUDA=EMULATED).

Exit status 77: Java, Redis or Maven is missing.
"""

import signal
import sys

from fleet import ROOT, Fleet, job

MODEL = "sd1-plain"
CARDS = ("worker1-0", "worker1-1")
NO_DEVICE = 6


def check(condition, message):
    if not condition:
        raise AssertionError(message)


def make_jobs(prefix, count):
    return [job(id=f"{prefix}-{i}", model=MODEL, prompt=f"a red cat {i}", steps=2)
            for i in range(count)]


def live_cards(fleet):
    live = set(fleet.redis.zrange("workers", 0, -1))
    return live if set(CARDS) <= live else None


def card_of(fleet, name):
    return fleet.ends(name)[-1]["worker"]


def check_both_draw(fleet):
    ids = fleet.produce(make_jobs("both", 24))
    fleet.wait(ids, timeout=300)
    cards = {card_of(fleet, name) for name in ids}
    check(cards == set(CARDS), f"not both cards drew: {cards}")


def check_a_lost_card(fleet):
    """All cards of the process are lost: it ends by itself, with a status of its own. Started again
    it draws the rest."""
    fleet.signal("worker1", signal.SIGTERM)
    fleet.processes["worker1"].wait(60)
    fleet.extra["worker1"]["ATELIER_EMULATED_LOST"] = "1200"
    fleet.start("worker1")
    fleet.until(lambda: live_cards(fleet), 60, "both cards")
    ids = fleet.produce(make_jobs("lost", 24))
    status = fleet.processes["worker1"].wait(300)
    check(status == NO_DEVICE, f"the worker ended with status {status}\n{fleet.log('worker1')}")
    check("card_ended" in fleet.log("worker1"), fleet.log("worker1"))
    check(any(not fleet.ends(name) for name in ids), "the card was lost too late for this test")
    del fleet.extra["worker1"]["ATELIER_EMULATED_LOST"]
    fleet.start("worker1")
    fleet.wait(ids, timeout=300)
    check(all(fleet.end(name) == "succeeded" for name in ids), "not all succeeded")


def main():
    fleet = Fleet(cell="cards", coordinators=1, classes=("a100",),
                  models=ROOT / "tests" / "golden" / "models",
                  worker_options=("--device", "cuda", "--batch-max", "1", "--ahead", "1"))
    fleet.extra["worker1"] = {"ATELIER_EMULATED_CARDS": "2"}
    fleet.await_up = lambda timeout=60: fleet.until(
        lambda: fleet.leader() and live_cards(fleet), timeout, "the fleet to be up")
    fleet.up()
    try:
        check_both_draw(fleet)
        check_a_lost_card(fleet)
        fleet.audit()
        print("every job was drawn once, by the cards that were left")
    except BaseException:
        fleet.keep = True
        print(f"logs are in {fleet.dir}", file=sys.stderr)
        raise
    finally:
        fleet.down()


if __name__ == "__main__":
    main()
