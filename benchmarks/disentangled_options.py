"""Environment steps a second of option-critic with the regulariser, learning included.

    python benchmarks/disentangled_options.py

Needs the extra `[bench]`. Against what one writes first: tables in NumPy for the four rooms, and a
network in PyTorch with the point mass in NumPy, once with one environment and once with as many as
ours. Every program learns with lambda = 0.05 and the settings of configs/disentangled_options.py.
Best of some repetitions in turns. Writes results/benchmarks/disentangled_options.json.
"""

import os
import time

import jax
import numpy as np
import torch
from torch import nn

from reprise.common import config as configs
from reprise.common.studies import benchmark
from reprise.common.training import run
from reprise.papers.disentangled_options import environments

LAMBDA, DISCOUNT = 0.05, 0.99

torch.set_num_threads(len(os.sched_getaffinity(0)))


class FourRooms:
    """One environment; failed moves go to a random free neighbour of the old cell."""

    def __init__(self, rng):
        self.rng, self.goal = rng, environments.GOAL
        self.cells = [tuple(cell) for cell in environments.fourrooms_cells().tolist()]
        self.number = {cell: s for s, cell in enumerate(self.cells)}

    def reset(self):
        self.state = self.rng.choice([s for s in range(len(self.cells)) if s != self.goal])
        self.elapsed = 0
        return self.state

    def step(self, action):
        row, column = self.cells[self.state]
        around = [self.number.get((row + r, column + c)) for r, c in environments.MOVES]
        if around[action] is not None:
            self.state = around[action]
            if self.rng.random() < 1 / 3:
                self.state = self.rng.choice([s for s in around if s is not None])
        self.elapsed += 1
        return self.state, float(self.state == self.goal), self.state == self.goal


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def regularizer_gradient(logits):
    """Of the mean Hellinger distance of pairs, by hand: [O, A]."""
    probs = softmax(logits)
    roots, slope = np.sqrt(probs), np.zeros_like(logits)
    pairs = [(i, j) for i in range(len(logits)) for j in range(i)]
    for i, j in pairs:
        distance = np.sqrt(0.5 * ((roots[i] - roots[j]) ** 2).sum() + 1e-12)
        for one, other in ((i, j), (j, i)):
            # d(H^2)/d(logit a) = 0.5 (p_a BC - sqrt(p_a q_a))
            product = roots[one] * roots[other]
            slope[one] += 0.5 * (probs[one] * product.sum() - product) / (2 * distance)
    return slope / len(pairs)


def numpy_option_critic(num_steps, options=4, actions=4, epsilon=0.01):
    rng = np.random.default_rng(0)
    env = FourRooms(rng)
    values = np.zeros((environments.NUM_CELLS, options))
    action_values = np.zeros((environments.NUM_CELLS, options, actions))
    logits = 0.01 * rng.normal(size=(environments.NUM_CELLS, options, actions))
    ends = np.zeros((environments.NUM_CELLS, options))

    def choose(s):
        return rng.integers(options) if rng.random() < epsilon else values[s].argmax()

    s = env.reset()
    w = choose(s)
    for _ in range(num_steps):
        pi = softmax(logits[s, w])
        a = rng.choice(actions, p=pi)
        following, reward, done = env.step(a)
        beta = sigmoid(ends[following, w])
        arrival = (1 - beta) * values[following, w] + beta * values[following].max()
        target = reward + DISCOUNT * (1 - done) * arrival
        values[s, w] += 0.5 * (target - values[s, w])
        action_values[s, w, a] += 0.5 * (target - action_values[s, w, a])
        advantage = action_values[s, w, a] - values[s, w]
        apart = regularizer_gradient(logits[s])
        logits[s, w] += 0.25 * advantage * (np.eye(actions)[a] - pi)
        logits[s] += 0.25 * LAMBDA * apart
        if not done:
            gain = values[following, w] - values[following].max()
            ends[following, w] -= 0.25 * beta * (1 - beta) * gain
        s = following
        if done or env.elapsed >= 1000:
            s = env.reset()
            w = choose(s)
        elif rng.random() < beta:
            w = choose(s)


class PointMasses:
    """N masses in NumPy arrays."""

    def __init__(self, count, rng):
        self.rng, self.goals = rng, np.array(environments.GOALS)
        self.position, self.velocity, self.goal = (np.zeros((count, 2)) for _ in range(3))
        self.elapsed = np.zeros(count, int)
        self.restart(np.ones(count, bool))

    def restart(self, which):
        count = which.sum()
        self.position[which] = self.rng.uniform(-0.3, 0.3, (count, 2))
        self.velocity[which] = 0
        self.goal[which] = self.goals[self.rng.integers(4, size=count)]
        self.elapsed[which] = 0

    def observe(self):
        parts = [self.position, 10 * self.velocity, self.goal]
        return torch.as_tensor(np.concatenate(parts, -1), dtype=torch.float32)

    def step(self, action):
        noise = 0.01 * self.rng.normal(size=action.shape)
        self.velocity = 0.8 * self.velocity + 0.05 * np.clip(action, -1, 1) + noise
        free = self.position + self.velocity
        self.position = np.clip(free, -1, 1)
        self.velocity[self.position != free] = 0
        distance = np.linalg.norm(self.position - self.goal, axis=-1)
        done = distance < environments.GOAL_RADIUS
        self.elapsed += 1
        return done - 0.1 * distance, done, done | (self.elapsed >= 100)


class Network(nn.Module):
    def __init__(self, options=4, size=2):
        super().__init__()
        self.shape = (-1, options, size)
        self.trunk = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 64), nn.ReLU())
        self.values, self.ends = nn.Linear(64, options), nn.Linear(64, options)
        self.mean, self.log_std = nn.Linear(64, options * size), nn.Linear(64, options * size)

    def forward(self, observation):
        features = self.trunk(observation)
        still = features.detach()
        mean = self.mean(still).view(self.shape)
        log_std = self.log_std(still).view(self.shape).clamp(-3.0, 0.5)
        return self.values(features), torch.sigmoid(self.ends(still)), mean, log_std


def torch_regularizer(mean, log_std):
    i, j = np.triu_indices(mean.shape[1], 1)
    v1, v2 = torch.exp(2 * log_std[:, i]), torch.exp(2 * log_std[:, j])
    log_overlap = 0.5 * torch.log(2 * torch.sqrt(v1 * v2) / (v1 + v2))
    log_overlap = log_overlap - (mean[:, i] - mean[:, j]) ** 2 / (4 * (v1 + v2))
    return torch.sqrt(1 - torch.exp(log_overlap.sum(-1)) + 1e-12).mean()


def torch_option_critic(num_steps, num_envs, unroll=8, epsilon=0.1):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    env, net, target_net = PointMasses(num_envs, rng), Network(), Network()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    rows = torch.arange(num_envs)
    option, fresh = torch.zeros(num_envs, dtype=torch.long), torch.ones(num_envs, dtype=torch.bool)
    for update in range(num_steps // (unroll * num_envs)):
        steps = []
        for _ in range(unroll):
            observation = env.observe()
            with torch.no_grad():
                values, ends, mean, log_std = net(observation)
                over = fresh | (torch.rand(num_envs) < ends[rows, option])
                explored = torch.randint(4, (num_envs,))
                greedy = torch.where(torch.rand(num_envs) < epsilon, explored, values.argmax(-1))
                option = torch.where(over, greedy, option)
                action = torch.normal(mean[rows, option], log_std[rows, option].exp())
            reward, done, stopped = env.step(action.numpy())
            following = env.observe()
            reward, done = (torch.as_tensor(x, dtype=torch.float32) for x in (reward, done))
            steps.append((observation, following, option, action, reward, done))
            env.restart(stopped)
            fresh = torch.as_tensor(stopped)
        observation, following, w, action, reward, done = (
            torch.cat(x) for x in zip(*steps, strict=True)
        )
        index = torch.arange(len(w))
        values, _, mean, log_std = net(observation)
        next_values, ends, _, _ = net(following)
        with torch.no_grad():
            old = target_net(following)[0]
            arrival = (1 - ends[index, w]) * old[index, w] + ends[index, w] * old.max(-1).values
            target = reward + DISCOUNT * (1 - done) * arrival
            advantage = target - values[index, w]
            gain = next_values[index, w] - next_values.max(-1).values + 0.01
        policy = torch.distributions.Normal(mean[index, w], log_std[index, w].exp())
        loss = 0.5 * (values[index, w] - target).pow(2).mean()
        loss = loss - (policy.log_prob(action).sum(-1) * advantage).mean()
        loss = loss - 0.01 * policy.entropy().sum(-1).mean()
        loss = loss + (ends[index, w] * gain * (1 - done)).mean()
        loss = loss - LAMBDA * torch_regularizer(mean, log_std)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if update % 50 == 0:
            target_net.load_state_dict(net.state_dict())


def ours(variant, rollouts, seeds, **fields):
    """A call that trains for some rollouts, compiled, and the environment steps it makes."""
    config = run.load_config(f"disentangled_options:{variant}")
    config = configs.apply_overrides(config, {f"model.{k}": v for k, v in fields.items()})
    (phase,) = run.recipe(config).phases(config)

    def one(state, key):
        def body(state, key):
            return phase.step(state, None, key)

        return jax.lax.scan(body, state, jax.random.split(key, rollouts))[0]

    keys = jax.random.split(jax.random.key(0), seeds)
    state = jax.vmap(lambda key: phase.init(key, None))(keys)
    program = jax.jit(jax.vmap(one)).lower(state, keys).compile()
    steps = rollouts * seeds * config.model.num_envs * config.model.unroll
    return lambda: jax.block_until_ready(program(state, keys)), steps


def measure(programs, repeats=5):
    """Environment steps a second of each."""
    best = {name: float("inf") for name in programs}
    for _ in range(repeats):
        for name, (call, _) in programs.items():
            began = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - began)
    return {name: steps / best[name] for name, (_, steps) in programs.items()}


def main():
    rooms, many = "four rooms, tables: ", "point mass, network: "
    programs = {
        rooms + "NumPy": (lambda: numpy_option_critic(1500), 1500),
        rooms + "ours": ours("fourrooms", 20, 1),
        rooms + "ours, 10 seeds": ours("fourrooms", 4, 10),
        rooms + "ours, 10 seeds x 16 environments": ours("fourrooms", 1, 10, num_envs=16),
        many + "PyTorch": (lambda: torch_option_critic(800, 1), 800),
        many + "PyTorch, 32 environments": (lambda: torch_option_critic(256 * 12, 32), 256 * 12),
        many + "ours, 32 environments": ours("pointmass", 40, 1),
        many + "ours, 32 environments, 10 seeds": ours("pointmass", 8, 10),
    }
    speeds, rows = measure(programs), {}
    for name, speed in speeds.items():
        plain = rooms + "NumPy" if name.startswith(rooms) else many + "PyTorch"
        rows[name] = {"steps_per_second": speed, "times plain": speed / speeds[plain]}
        if name.startswith(many):
            batched = speeds[many + "PyTorch, 32 environments"]
            rows[name]["times PyTorch, 32 environments"] = speed / batched
    benchmark.write("disentangled_options", rows)


if __name__ == "__main__":
    main()
