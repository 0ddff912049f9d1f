from outrider.cluster.controller.reconcile import Goal, Phase
from outrider.cluster.controller.record import ClusterRecord, ReplicaRecord


def a_replica(name: str, phase: Phase, *, started: bool) -> ReplicaRecord:
    return ReplicaRecord(
        name=name,
        generation=3,
        restarts=0,
        goal=Goal.SERVE,
        phase=phase,
        started=started,
        address="",
        device="cpu",
        node_names={},
        last_ending="",
    )


def test_only_gangs_that_were_told_to_start_and_had_not_ended_are_gone_on_with() -> None:
    replicas = (
        a_replica("r0", Phase.READY, started=True),
        a_replica("r1", Phase.DRAINING, started=True),
        a_replica("r2", Phase.STARTING, started=True),
        a_replica("r3", Phase.STARTING, started=False),
        a_replica("r4", Phase.FAILED, started=True),
        a_replica("r5", Phase.ABSENT, started=False),
    )
    record = ClusterRecord(
        identity="",
        address="127.0.0.1:1",
        configured=1,
        desired=6,
        ever_ready=True,
        ending=False,
        replicas=replicas,
        generations={},
        former_hosts=(),
    )

    assert [one.name for one in record.survivors] == ["r0", "r1", "r2"]
    assert record.names_to_keep("c") == ("outrider:c:r0:g3:", "outrider:c:r1:g3:", "outrider:c:r2:g3:")
