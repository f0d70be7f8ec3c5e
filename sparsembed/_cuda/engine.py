"""The engine of GPUs: what `sparsembed._engine.Engine` asks for."""

from .call import begin, end, finish, place_name, result, synchronize
from .catch_up import flush, missed
from .few import add_few, lookup_few, sum_few, update_bags_few, update_few
from .gradients import allow_check, of_bags, of_gradient, of_lookups, refuse_infinite
from .inputs import check_trainable, check_writeable, gradient, hands_out_copies, ids, offsets, sample_weights, weight
from .launch import add_rows, segment_sum, update
from .reading import Place, gather, gather_few, pool, pool_few, weights_gradient
from .rows import clear, grown, own_ids, reset, taken
from .scores import dot, dot_few, dot_loss, even_offsets
from .sorting import check_bags, check_ids, fits, part, shown, sort
from .store import (
    adopt,
    begin_step,
    columns,
    fresh,
    hold,
    place,
    place_saved,
    reading,
    ready,
    recording,
    restore,
    saved,
    with_arrays,
)
from .views import caller_of

name = "cuda"
on_host = " on the host"  # added to messages about functions that exist on the host only
locks_free = False  # whether lookups of rows that miss no steps need no lock
sums_max_apart = False  # whether several lookups of mode max are summed one by one
checks_plans = False  # whether ids of a plan are known to be in range
rows_catch_up_alone = False  # whether `taken` rows have missed the steps that they had missed
checks_while_reading = False  # whether a new result needs no check of ids before it is read
