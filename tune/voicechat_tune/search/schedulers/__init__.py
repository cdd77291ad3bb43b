"""Schedulers start and stop the runs of a sweep. A new scheduler is one file, and one line in this one."""

from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import PlainValidator, SerializeAsAny

from voicechat_platform.strict_yaml import shortened
from voicechat_tune.search.schedulers.halving import Asha, Hyperband
from voicechat_tune.search.schedulers.interface import SchedulerConfig, fault_in
from voicechat_tune.search.schedulers.percentile import Percentile
from voicechat_tune.search.schedulers.population import Population

SCHEDULERS: dict[str, type[SchedulerConfig]] = {
    "asha": Asha,
    "hyperband": Hyperband,
    "percentile": Percentile,
    "pbt": Population,
}
"""By `kind` in the sweep file; the first is the default."""


def config_of(fields: Any) -> SchedulerConfig:
    """Return the scheduler's configuration from the fields of a sweep file; another kind's field may be null.

    Raises:
        ValueError: the kind is unknown, or its class refuses the fields.
    """
    if isinstance(fields, SchedulerConfig):
        return fields
    if not isinstance(fields, dict):
        raise ValueError(f"expected fields such as {{kind: asha, grace_steps: 200}}, got {shortened(fields)}")
    kind = fields.get("kind", next(iter(SCHEDULERS)))
    if not isinstance(kind, str) or kind not in SCHEDULERS:
        raise fault_in("kind", kind, f"there is no scheduler {shortened(kind)}; give one of {', '.join(SCHEDULERS)}")
    own = SCHEDULERS[kind].model_fields
    foreign = {name for config in SCHEDULERS.values() for name in config.model_fields if name not in own}
    return SCHEDULERS[kind].model_validate({k: v for k, v in fields.items() if v is not None or k not in foreign})


AnyScheduler = Annotated[
    SerializeAsAny[SchedulerConfig],
    PlainValidator(config_of, json_schema_input_type=reduce(or_, SCHEDULERS.values())),
]
"""The type of the field `scheduler`: its `kind` selects the class."""
