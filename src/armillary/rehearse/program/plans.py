"""Whether a plan is for what is rehearsed: this model, on a machine that is still the same."""

from armillary import machines
from armillary.spec import Machine, ModelGraph, Plan, SpecError

HERE = "(rehearse/program/plans.py)"


def check_machine(plan: Plan) -> Machine:
    """The machine of `plan`.

    Raises: `SpecError` if it is not known, is another than when the plan was made, or cannot hold
    the ranks.
    """
    machine = machines.load(plan.machine)
    if plan.memory_limit_bytes != machine.device.memory_bytes:
        raise SpecError(
            "plan.machine",
            f"{plan.machine} with {plan.memory_limit_bytes:.0f} bytes a device, where it now has "
            f"{machine.device.memory_bytes:.0f}",
            f"a plan is rehearsed on the machine that it was made for {HERE}",
            "plan anew, or restore the machine's file",
        )
    num_devices = machine.num_nodes * machine.ranks_per_node
    if plan.layout.num_ranks > num_devices:
        raise SpecError(
            "plan.layout",
            f"{plan.layout.num_ranks} ranks on {machine.name}, which has {num_devices} devices",
            f"every rank has a device of its own {HERE}",
            f"plan for at most {num_devices} devices, or name a larger machine",
        )
    return machine


def check_model(plan: Plan, graph: ModelGraph, name: str) -> None:
    """Raises: `SpecError` if `plan` is for another model than `name`, of which `graph` is."""
    if plan.num_parameters == graph.num_parameters and plan.model in (name, graph.name):
        return
    raise SpecError(
        "plan.model",
        f"{plan.model} of {plan.num_parameters} parameters, where {name} has "
        f"{graph.num_parameters}",
        f"a plan is rehearsed with the model that it was made for {HERE}",
        "give the options that the plan was made with, or plan anew",
    )
