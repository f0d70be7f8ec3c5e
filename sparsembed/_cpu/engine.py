"""The CPU engine: the functions and facts of `sparsembed._engine.Engine`."""

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

name = "cpu"
on_host = ""  # words that messages add to functions that only the CPU engine has
locks_free = True  # whether lookups of rows that miss no steps need no lock
sums_max_apart = True  # whether gradients of several max-pooled lookups are summed lookup by lookup
checks_plans = True  # whether the ids of a plan have been checked
rows_catch_up_alone = True  # whether `taken` rows have missed the steps that they had missed
checks_while_reading = True  # whether a new result needs no check of ids before it is read
