"""Loss spikes: found in the step, rolled back and skipped around it.

rules   what a step tells of itself, on the devices        policy  what is to be done about a spike
detect  the rules on a curve that is there already         ledger  what was done, for good
"""

from jaxllm.train.guard.detect import Detection, Spike, detect

__all__ = ["Detection", "Spike", "detect"]
