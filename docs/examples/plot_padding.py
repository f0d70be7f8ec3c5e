"""
Should the vector of the padding be zero?
=========================================

Posts of different lengths are padded to one length with an id of their own, 0.  Every id is looked up, the vectors of a
post are laid end to end, and a dense layer reads them.  Padding is the same everywhere, so it carries no information:
does it matter which vector it has?

**It does, if the vectors go into a layer with weights of its own for each position.**  With a padding row like any
other, the network on this page learns nothing for several epochs; with a row of zeros it learns from the first batch.
``padding_idx`` is all it takes::

    table = se.EmbeddingTable(num_rows, dim, optimizer=se.Adam(), padding_idx=0)

The reason is not that the padding's row is *trained*.  In the first steps it gets nearly all of the gradient, but a row
that stays at its random initial vector does as much harm, or more.  It is that one vector stands in most positions of
every post.  All weights that read it get gradients in step; they move together, and one step pushes each hidden unit
farther, in all posts alike, than words tell posts apart.  Soon many units are below zero for every post, where a relu
passes nothing on, and the others show little but how long a post is.

The question is one that somebody asked in public about Keras, with two learning curves.  Below are those curves again,
measured here, and what happens inside.
"""

# %%
# The curves, at full size
# ------------------------
#
# The data are the 20 Newsgroups, both parts of the "bydate" archive.  A fifth of the posts is held out at random, as
# the asker did, so the accuracies are not those of the usual test by date: replies to one post land on both sides.  A
# token is a run of at least two letters of the lower-case text, headers included; the commonest words of English are
# left out, and so is all but the 20,000 most frequent words of the training posts, which gives the asker's number of
# parameters.  Posts are padded in front to 1,100 tokens.  The model is the asker's: 300 numbers a word, a dense layer
# of 25 with relu, dropout of 0.3, 20 classes, Adam with Keras' settings, and a stop after five epochs without a
# smaller validation loss.  The batch size is ours, for the question gives none.
#
# It is trained three times with the same initial values, batches and dropout.  *trained*: the padding's row is a row
# like any other.  *zero*: ``padding_idx=0``.  *fixed*: the row keeps its random initial vector (for four epochs: longer
# was not tried).  This is what one run measured, and the command that ran it:

import json
import os

import matplotlib.pyplot as plt
import newsgroups
import numpy as np
import padding_figures

import sparsembed as se

full = json.loads(newsgroups.COMMITTED.read_text())
print(full["command"])
print(f"{full['data']}: {full['posts']:,} posts, {full['posts_held_out']:,} more held out\n")
print(padding_figures.accuracies(full))

# %%
# Crosses are the asker's figures, which are given for some epochs only.

padding_figures.curves(full)
plt.show()

# %%
# Other seeds give other initial values, batches and dropout; the posts held out stay the same.

print(padding_figures.seeds(full))

# %%
# A small one, here and now
# -------------------------
#
# The same code with a smaller model, on made-up posts: 20 topics, each with words of its own among those that all
# share, as ragged as the real ones.  (With the real archive in a folder that ``SPARSEMBED_DATA`` names, some of the
# real ones.)  These posts are easier than real ones, so the gap closes sooner.

posts = newsgroups.read_posts(os.environ.get("SPARSEMBED_DATA"))
settings = newsgroups.QUICK
data = newsgroups.split_and_pad(posts, settings, most=newsgroups.SOME)
small = newsgroups.compare(data, settings)
padding_figures.curves(small, asked=False)
plt.show()

# %%
# What happens in a step
# ----------------------
#
# The explanation that comes to mind: the padding's row occurs more often than all words together, so its summed
# gradient is huge, and training it drowns the rest.  Half of that is what one measures.  The gradient is huge, but
# Adam divides by it, and moves the row about as far as any other.

print(padding_figures.in_words(full))

# %%
# At first the move comes from the dense layer.  In a position that holds a word, the weights' gradients differ from
# post to post and from position to position; in those that hold padding they are one vector times the slope of the
# hidden unit, the same for hundreds of positions.  Adam turns each into a step of one size, and the steps add up.  A
# step that is right for the words is hundreds of times too large for that sum.
#
# With the row at zero these weights get no gradient from padding, and the sum is zero whatever they are.  (The
# columns of *zero* show which share of the gradient arrives at the padding's row nevertheless: ``update`` leaves it
# out.)

print(padding_figures.first_steps(full))

# %%
# In the lower right, units that are off for every post in the batch.  While all are off, the only thing that learns is
# the bias of the last layer, which knows how frequent each topic is.  Units that are on differ from post to post by how
# much padding there is, several times as much as by words (lower left).

padding_figures.causes(full)
plt.show()

# %%
# How it learns after all
# -----------------------
#
# The network above starts to learn in the end, and so did the asker's.  What changes is the padding's row: its gradient
# shrinks it, until words tell posts apart by more than padding does.  So training the row
# may be the way out rather than the harm; the four epochs with a row that stays random are too few to say.

print(padding_figures.recovery(full))

# %%
# Out of the box
# --------------
#
# The asker multiplied the looked-up vectors with a mask, by hand, and wondered why no option does this.  Here one
# does.  A table with ``padding_idx`` sets that row to zero when it is made and leaves it out of each update, with
# every optimizer and with weight decay, too:

table = se.EmbeddingTable(5, 3, optimizer=se.AdamW(lr=0.1, weight_decay=0.1), padding_idx=0, rng=0)
ids = np.array([[0, 0, 2, 3], [0, 1, 1, 4]])
table.update(ids, np.ones((2, 4, 3), np.float32))
print(table.lookup(ids)[0].round(2))

# %%
# What others do:
#
# - Keras' ``mask_zero=True`` computes a mask beside the vectors, for layers that know what to do with one, such as
#   recurrent and attention layers.  It changes neither the vectors of id 0 nor their gradient.  ``Flatten`` does not
#   know masks: Keras 3 warns and drops it, and the padding's row is trained.
# - torch's ``nn.Embedding(padding_idx=0)`` sets the row to zero when it draws the weights itself, and leaves out its
#   gradient: enough for this page.  ``from_pretrained`` takes the row as it comes, and leaves it so.  An optimizer
#   that decays all weights decays this row, too, if it is not zero.
#
# What it does not do
# -------------------
#
# Zero is a value, and only a layer that multiplies it sees nothing.  A mean over padded rows still divides by the
# padded length: use ``Bags.from_padded``, whose padding counts in no divisor.  A layer with a bias, a softmax over
# positions, or a normalisation needs a mask.
#
# And the cause is what inputs have in common, not that it is padding.  The asker also tried words whose vectors were
# all positive, with the padding at zero, and got stuck again: such vectors share a direction.  We did not run that
# one.
