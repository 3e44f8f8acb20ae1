"""The environments, as pure functions: reset(key) -> state, step(state, action, key) -> (state,
reward, done).

Four rooms, a point mass among four goals, and a bat-and-ball game on a board of 10 x 10. `step` of
each serves one environment, or under `vmap` many.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

FOUR_ROOMS = (
    "#############",
    "#.....#.....#",
    "#.....#.....#",
    "#...........#",
    "#.....#.....#",
    "#.....#.....#",
    "##.####.....#",
    "#.....###.###",
    "#.....#.....#",
    "#.....#.....#",
    "#...........#",
    "#.....#.....#",
    "#############",
)
GOAL = 62  # the eastern doorway
# The lower right room, where option-critic's transfer experiment moves the goal.
MOVED_GOALS = (*range(68, 73), *range(78, 83), *range(88, 94), *range(99, 104))
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right
SLIP_MODES = ("replace", "reference")

Step = tuple[Any, Float[Array, ""], Bool[Array, ""]]


class Environment(NamedTuple):
    """What a learner needs of an environment.

    Attributes:
      reset: (key) -> state.
      step: (state, action, key) -> (state, reward [], done []).
      observe: (state) -> what the agent sees.
      time_limit: steps after which an episode is cut off; the last state still bootstraps.
    """

    reset: Callable[[Array], Any]
    step: Callable[[Any, Array, Array], Step]
    observe: Callable[[Any], Array]
    time_limit: int


def fourrooms_cells() -> Int[np.ndarray, "states 2"]:
    """Row and column of every free cell, numbered row by row."""
    return np.argwhere(np.array([list(row) for row in FOUR_ROOMS]) == ".")


def _fourrooms_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each move leads [S, 4], the free neighbours [S, 4], and how many they are [S]."""
    cells = fourrooms_cells()
    number = {tuple(cell): s for s, cell in enumerate(cells.tolist())}
    after = np.array(
        [[number.get((r + dr, c + dc), s) for dr, dc in MOVES] for s, (r, c) in enumerate(cells)]
    )
    free = [[t for t in row if t != s] for s, row in enumerate(after.tolist())]
    neighbours = np.array([row + [row[0]] * (4 - len(row)) for row in free])
    return after, neighbours, np.array([len(row) for row in free])


_AFTER, _NEIGHBOURS, _DEGREE = _fourrooms_tables()
NUM_CELLS = len(_DEGREE)


def fourrooms_step(
    state: Int[Array, "..."],
    action: Int[Array, "..."],
    key: Array,
    goal: Int[Array, "..."] | int,
    *,
    slip: float = 1 / 3,
    slip_mode: str = "replace",
) -> tuple[Int[Array, "..."], Float[Array, "..."], Bool[Array, "..."]]:
    """One move in the four rooms; reward 1 and the end at the goal.

    A move into a wall stays where it is. Any other fails with probability `slip`. Bacon, Harb,
    Precup (2017).

    Args:
      state: number of a free cell, 0..103.
      action: 0 up, 1 down, 2 left, 3 right.
      key: of the slip.
      goal: number of the cell that ends the episode.
      slip: probability that a move fails.
      slip_mode: "replace": a failed move leads to a random free neighbour of the old cell, as the
        paper's text says. "reference": the move is made, then another one to a random free
        neighbour of the new cell, as the original code does.

    Returns:
      (next_state int32, reward float32, done bool), shaped like state.

    Raises:
      ValueError: an unknown slip_mode.
    """
    if slip_mode not in SLIP_MODES:
        raise ValueError(
            f"fourrooms_step: slip_mode = {slip_mode!r}: allowed are {', '.join(SLIP_MODES)}"
        )
    state = jnp.asarray(state, jnp.int32)
    after, neighbours, degree = (
        jnp.asarray(table, jnp.int32) for table in (_AFTER, _NEIGHBOURS, _DEGREE)
    )
    moved = after[state, action]
    centre = moved if slip_mode == "reference" else state
    fails, which = jax.random.uniform(key, (2, *moved.shape))
    chosen = jnp.minimum((which * degree[centre]).astype(jnp.int32), degree[centre] - 1)
    slips = (fails < slip) & (moved != state)
    following = jnp.where(slips, neighbours[centre, chosen], moved)
    done = following == goal
    return following, done.astype(jnp.float32), done


def fourrooms_reset(key: Array, goal: Int[Array, ""] | int) -> Int[Array, ""]:
    """A cell drawn uniformly from all but the goal."""
    cell = jax.random.randint(key, (), 0, NUM_CELLS - 1)
    return jnp.where(cell >= goal, cell + 1, cell).astype(jnp.int32)


def fourrooms(goal: Int[Array, ""] | int, slip_mode: str, time_limit: int = 1000) -> Environment:
    """Four rooms; the observation is the number of the cell."""

    def step(state: Array, action: Array, key: Array) -> Step:
        return fourrooms_step(state, action, key, goal, slip_mode=slip_mode)

    return Environment(lambda key: fourrooms_reset(key, goal), step, lambda s: s, time_limit)


class PointMass(NamedTuple):
    """position and velocity in the square [-1, 1]^2, and the goal of this episode: [2] each."""

    position: Float[Array, " 2"]
    velocity: Float[Array, " 2"]
    goal: Float[Array, " 2"]


GOALS = ((-0.7, -0.7), (-0.7, 0.7), (0.7, -0.7), (0.7, 0.7))  # of the point mass
GOAL_RADIUS = 0.15


def point_mass_step(state: PointMass, action: Float[Array, " 2"], key: Array) -> Step:
    """A mass is pushed with a force; walls stop it, the goal ends the episode.

    velocity' = 0.8 velocity + 0.05 clip(action, -1, 1) + N(0, 0.01), position' = position +
    velocity', clipped to the square with the velocity into the wall set to 0. Reward: -0.1 times
    the distance to the goal, and 1 within 0.15 of it. An environment of ours.

    Args:
      state: of one mass.
      action: force [2].
      key: of the noise.
    """
    noise = 0.01 * jax.random.normal(key, (2,))
    velocity = 0.8 * state.velocity + 0.05 * jnp.clip(action, -1.0, 1.0) + noise
    free = state.position + velocity
    position = jnp.clip(free, -1.0, 1.0)
    velocity = jnp.where(position == free, velocity, 0.0)
    distance = jnp.sqrt(((position - state.goal) ** 2).sum())
    done = distance < GOAL_RADIUS
    return PointMass(position, velocity, state.goal), done - 0.1 * distance, done


def point_mass_reset(key: Array) -> PointMass:
    """At rest near the middle, with one of the four goals."""
    where, which = jax.random.split(key)
    position = jax.random.uniform(where, (2,), minval=-0.3, maxval=0.3)
    goal = jax.random.choice(which, jnp.asarray(GOALS))
    return PointMass(position, jnp.zeros(2), goal)


def point_mass() -> Environment:
    """The point mass; the observation is [position, 10 velocity, goal]."""

    def observe(state: PointMass) -> Float[Array, " 6"]:
        return jnp.concatenate([state.position, 10 * state.velocity, state.goal])

    return Environment(point_mass_reset, point_mass_step, observe, 100)


class Breakout(NamedTuple):
    """A ball, a paddle in the bottom row and rows of bricks; (row, column) from the upper left.

    Attributes:
      ball, before: where the ball is, and was one step ago: int32 [2].
      motion: of the ball, +1 or -1 in rows and columns: int32 [2].
      paddle: its column: int32 [].
      bricks: bool [10, 10].
      struck: the ball hit a brick in the last step; it passes the next one.
    """

    ball: Int[Array, " 2"]
    before: Int[Array, " 2"]
    motion: Int[Array, " 2"]
    paddle: Int[Array, ""]
    bricks: Bool[Array, "10 10"]
    struck: Bool[Array, ""]


def _wall_of_bricks() -> Bool[Array, "10 10"]:
    rows = jnp.arange(10)[:, None]
    return jnp.broadcast_to((rows >= 1) & (rows <= 3), (10, 10))


def breakout_step(state: Breakout, action: Int[Array, ""], key: Array) -> Step:
    """One step of the bat-and-ball game with MinAtar's rules (Young, Tian, 2019).

    The ball moves along diagonals and is reflected by walls, bricks and the paddle; a brick gives
    reward 1 and vanishes; a missed ball ends the episode; a cleared board is filled again.

    Args:
      state: of one board.
      action: 0 stays, 1 left, 2 right.
      key: not used; the game is deterministic but for its start.
    """
    shift = (action == 2).astype(jnp.int32) - (action == 1).astype(jnp.int32)
    paddle = jnp.clip(state.paddle + shift, 0, 9)
    old_row, old_column = state.ball
    down, right = state.motion
    row, column = old_row + down, old_column + right
    right = jnp.where((column < 0) | (column > 9), -right, right)
    column = jnp.clip(column, 0, 9)

    top = row < 0
    on_brick = ~top & state.bricks[jnp.clip(row, 0, 9), column]
    breaks = on_brick & ~state.struck
    bricks = state.bricks.at[jnp.clip(row, 0, 9), column].min(~breaks)
    bottom = ~top & ~on_brick & (row == 9)
    bricks = jnp.where(bottom & ~bricks.any(), _wall_of_bricks(), bricks)
    # Hit from above the ball returns; hit by its edge it also changes its side.
    above, edge = old_column == paddle, column == paddle
    caught = bottom & (above | edge)
    right = jnp.where(caught & ~above, -right, right)
    down = jnp.where(top | breaks | caught, -down, down)
    row = jnp.where(top, 0, jnp.where(breaks | caught, old_row, row))
    after = Breakout(
        jnp.stack([row, column]), state.ball, jnp.stack([down, right]), paddle, bricks, on_brick
    )
    return after, breaks.astype(jnp.float32), bottom & ~caught


def breakout_reset(key: Array) -> Breakout:
    """The ball enters below the bricks from the left or the right."""
    side = jax.random.bernoulli(key)
    ball = jnp.stack([jnp.int32(3), jnp.where(side, 9, 0).astype(jnp.int32)])
    motion = jnp.stack([jnp.int32(1), jnp.where(side, -1, 1).astype(jnp.int32)])
    return Breakout(ball, ball, motion, jnp.int32(4), _wall_of_bricks(), jnp.bool_(False))


def breakout() -> Environment:
    """The game; the observation is [10, 10, 4]: paddle, ball, where it was, bricks."""

    def observe(state: Breakout) -> Float[Array, "10 10 4"]:
        empty = jnp.zeros((10, 10))
        planes = [
            empty.at[9, state.paddle].set(1.0),
            empty.at[state.ball[0], state.ball[1]].set(1.0),
            empty.at[state.before[0], state.before[1]].set(1.0),
            state.bricks.astype(jnp.float32),
        ]
        return jnp.stack(planes, -1)

    return Environment(breakout_reset, breakout_step, observe, 1000)
