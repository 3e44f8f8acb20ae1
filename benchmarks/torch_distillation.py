"""Training steps of the distillation methods in plain eager PyTorch, for `distillation.py`.

As the released codes write them: convolutions NCHW, frozen teachers under `no_grad`, loops over
teachers and over steps of a walk, early exits, singular vectors by `torch.linalg.svd` and its
gradient. `STEPS[method](teachers, student, image, label)` returns a function that makes one step of
SGD with momentum and returns the loss. Teachers are in inference mode and need no gradient.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

TAPS = ("stage1", "stage2", "stage3")


class WRN(nn.Module):
    """WRN-depth-width; its modules have the names of `reprise.common.models.wrn.WRN`'s."""

    def __init__(self, depth, width, classes):
        super().__init__()
        self.blocks, channels = (depth - 4) // 6, 16
        self.stem = nn.Conv2d(3, channels, 3, 1, 1, bias=False)
        for stage in (1, 2, 3):
            out = 8 * width << stage
            for block in range(self.blocks):
                name = f"stage{stage}_block{block}"
                stride = 2 if stage > 1 and block == 0 else 1
                if channels != out or stride > 1:
                    shortcut = nn.Conv2d(channels, out, 1, stride, bias=False)
                    self.add_module(f"{name}_shortcut", shortcut)
                self.add_module(f"{name}_bn0", nn.BatchNorm2d(channels))
                conv = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
                self.add_module(f"{name}_conv0", conv)
                self.add_module(f"{name}_bn1", nn.BatchNorm2d(out))
                self.add_module(f"{name}_conv1", nn.Conv2d(out, out, 3, 1, 1, bias=False))
                channels = out
        self.bn, self.head = nn.BatchNorm2d(channels), nn.Linear(channels, classes)

    def forward(self, x):
        part, taps = self._modules, {}
        x = self.stem(x)
        for stage in (1, 2, 3):
            for block in range(self.blocks):
                name = f"stage{stage}_block{block}"
                pre = part[f"{name}_bn0"](x)
                h = F.relu(pre)
                if stage > 1 and block == 0:
                    taps[f"stage{stage - 1}_pre"], taps[f"stage{stage - 1}"] = pre, h
                if f"{name}_shortcut" in part:
                    x = part[f"{name}_shortcut"](h)
                h = F.relu(part[f"{name}_bn1"](part[f"{name}_conv0"](h)))
                x = x + part[f"{name}_conv1"](h)
        taps["stage3_pre"] = self.bn(x)
        taps["stage3"] = F.relu(taps["stage3_pre"])
        return self.head(taps["stage3"].mean((2, 3))), taps


def load(module, params, stats):
    """Copies variables of Flax modules into those of the same names."""
    for name, values in params.items():
        child = module.get_submodule(name)
        if not any(hasattr(value, "shape") for value in values.values()):
            load(child, values, stats.get(name, {}))
            continue
        values = {**values, **stats.get(name, {})}
        for key, value in values.items():
            value = torch.tensor(value)
            if key == "kernel":
                value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T
                value = value.reshape(child.weight.shape)  # Linen's 1x1 convolution may be a Dense
            name_here = {"kernel": "weight", "scale": "weight", "bias": "bias"}
            name_here |= {"mean": "running_mean", "var": "running_var"}
            getattr(child, name_here[key]).data.copy_(value)


def sgd(modules):
    parameters = [p for module in modules for p in module.parameters()]
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


def plain(loss, *modules):
    """A step along the gradient of one loss."""
    optimizer = sgd(modules)

    def step():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value

    step.modules = modules
    return step


def clipped(losses, student):
    """A step along g_ce and every other gradient, clipped to half the norm of g_ce by tensor."""
    optimizer, parameters = sgd([student]), list(student.parameters())

    def step():
        ce, *transfers = losses()
        grads = torch.autograd.grad(ce, parameters, retain_graph=True)
        sums = [g.clone() for g in grads]
        for i, transfer in enumerate(transfers):
            retain = i < len(transfers) - 1
            own = torch.autograd.grad(transfer, parameters, retain_graph=retain, allow_unused=True)
            for total, g, k in zip(sums, grads, own, strict=True):
                if k is not None:
                    k = torch.nan_to_num(k)
                    total += k * torch.clamp(0.5 * g.norm() / k.norm().clamp(min=1e-12), max=1)
        for p, total in zip(parameters, sums, strict=True):
            p.grad = total
        optimizer.step()
        return ce + sum(transfers)

    return step


@torch.no_grad()
def asked(teacher, image):
    return teacher(image)


def soft(student, teacher, temperature):
    return -(F.softmax(teacher / temperature, 1) * F.log_softmax(student / temperature, 1)).sum(1)


def cross_entropy(teachers, student, image, label):
    return plain(lambda: F.cross_entropy(student(image)[0], label), student)


def knowledge_distillation(teachers, student, image, label):
    def loss():
        logits, target = student(image)[0], asked(teachers[0], image)[0]
        ours, theirs = F.log_softmax(logits / 4, 1), F.softmax(target / 4, 1)
        kl = F.kl_div(ours, theirs, reduction="batchmean")
        return F.cross_entropy(logits, label) + 16 * kl

    return plain(loss, student)


class Connectors(nn.Module):
    def __init__(self, taps, targets):
        super().__init__()
        for i, (x, t) in enumerate(zip(taps, targets, strict=True)):
            parts = nn.Conv2d(x.shape[1], t.shape[1], 1, bias=False), nn.BatchNorm2d(t.shape[1])
            self.add_module(f"connector{i}", nn.Sequential(*parts))

    def forward(self, taps):
        return [part(x) for part, x in zip(self.children(), taps, strict=True)]


def before_relu(network, image):
    taps = network(image)[1]
    return [taps[f"{name}_pre"] for name in TAPS]


def with_connectors(teachers, student, image):
    with torch.no_grad():
        return Connectors(before_relu(student, image), before_relu(teachers[0], image))


def activation_boundary(teachers, student, image, label):
    connectors = with_connectors(teachers, student, image)

    def loss():
        ours = connectors(before_relu(student, image))
        with torch.no_grad():
            theirs = before_relu(teachers[0], image)
        total = 0
        for i, (s, t) in enumerate(zip(ours, theirs, strict=True)):
            off = (s + 1) ** 2 * ((s > -1) & (t <= 0)).float()
            on = (s - 1) ** 2 * ((s <= 1) & (t > 0)).float()
            total = total + (off + on).sum() / len(image) / 2 ** (2 - i)
        return 3e-3 * total

    return plain(loss, student, connectors)


def overhaul_distillation(teachers, student, image, label):
    connectors, teacher = with_connectors(teachers, student, image), teachers[0]
    names = ("stage2_block0_bn0", "stage3_block0_bn0", "bn")
    margins = []
    for bn in (teacher.get_submodule(name) for name in names):
        mean, std = bn.bias.data.double(), bn.weight.data.abs().double()
        normal = torch.distributions.Normal(0, 1)
        share = normal.cdf(-mean / std)
        expected = mean - std * normal.log_prob(mean / std).exp() / share.clamp(min=1e-30)
        margins.append(torch.where(share > 1e-3, expected, -3 * std).float()[:, None, None])

    def loss():
        logits, taps = student(image)
        ours = connectors([taps[f"{name}_pre"] for name in TAPS])
        teacher.train()
        with torch.no_grad():
            theirs = before_relu(teacher, image)
        total = 0
        for i, (s, t, m) in enumerate(zip(ours, theirs, margins, strict=True)):
            t = torch.maximum(t, m)
            each = F.mse_loss(s, t, reduction="none") * ((s > t) | (t > 0)).float()
            total = total + each.sum() / 2 ** (2 - i)
        return F.cross_entropy(logits, label) + 3e-3 * total / len(image)

    return plain(loss, student, connectors)


def walk(teacher, image, base, target):
    """Toward the boundary between two classes, as the released attack does."""
    rows, x = torch.arange(len(image)), image
    for _ in range(10):
        x = x.detach().requires_grad_()
        logits = teacher(x)[0]
        active = logits.argmax(1) == base
        if not active.any():
            break
        gap = logits[rows, target] - logits[rows, base]
        slope = torch.autograd.grad(gap.sum(), x)[0]
        length = 0.3 * (1e-4 - gap.detach()) / slope.flatten(1).norm(dim=1) * active
        x = (x + length[:, None, None, None] * slope).clamp(-2.5, 2.5)
    return x.detach()


def boundary_supporting_samples(teachers, student, image, label, most=8):
    teacher = teachers[0]

    def loss():
        logits, target = student(image)[0], asked(teacher, image)[0]
        total = F.cross_entropy(logits, label) + 4 * soft(logits, target, 3).mean()
        right = (target.argmax(1) == label) & (logits.argmax(1) == label)
        ours, theirs = F.softmax(logits.detach(), 1), F.softmax(target, 1)
        score = (ours - theirs) ** 2
        score[torch.arange(len(label)), label] = 0
        score = torch.where(right, score.sum(1), -1.0)
        rows = score.argsort(descending=True)[: min(most, int(right.sum()))]
        if len(rows) == 0:
            return total
        base = target[rows].argmax(1)
        chances = theirs[rows].clone()
        chances[torch.arange(len(rows)), base] = 0
        moved = walk(teacher, image[rows], base, torch.multinomial(chances, 1)[:, 0])
        return total + 2 * soft(student(moved)[0], asked(teacher, moved)[0], 3).mean()

    return plain(loss, student)


def layers_of_factors(channels, factors):
    """Three 3x3 convolutions with LeakyReLU: a paraphraser's encoder, or a translator."""
    sizes = ((channels, channels), (channels, factors), (factors, factors))
    parts = [(nn.Conv2d(a, b, 3, 1, 1), nn.LeakyReLU(0.1)) for a, b in sizes]
    return nn.Sequential(*(layer for pair in parts for layer in pair))


def feed(teachers, student, image, label):
    width, wide = student.head.in_features, teachers[0].head.in_features
    encoders = [layers_of_factors(wide, wide // 2) for _ in teachers]
    translators = nn.ModuleList(layers_of_factors(width, wide // 2) for _ in teachers)

    def loss():
        logits, taps = student(image)
        total = F.cross_entropy(logits, label)
        for teacher, encoder, translator in zip(teachers, encoders, translators, strict=True):
            with torch.no_grad():
                factor = F.normalize(encoder(teacher(image)[1]["stage3"]).flatten(1))
            ours = F.normalize(translator(taps["stage3"]).flatten(1))
            total = total + 100 * F.l1_loss(ours, factor)
        return total

    return plain(loss, student, translators)


class Fusion(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.dw = nn.Conv2d(2 * channels, 2 * channels, 3, 1, 1, groups=2 * channels, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(2 * channels), nn.BatchNorm2d(channels)
        self.pw = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.fc = nn.Linear(channels, classes)

    def forward(self, maps):
        x = F.relu(self.bn1(self.dw(torch.cat(maps, 1))))
        return self.fc(F.relu(self.bn2(self.pw(x))).mean((2, 3)))


def feature_fusion_learning(teachers, student, image, label):
    """Two networks like the student and their fusion; no teacher."""
    other = WRN(6 * student.blocks + 4, student.head.in_features // 64, student.head.out_features)
    fusion = Fusion(student.head.in_features, student.head.out_features)

    def divergence(ours, theirs):
        q = F.softmax(theirs.detach() / 3, 1) + 1e-7
        return 9 * (q * (q.log() - F.log_softmax(ours / 3, 1))).sum(1).mean()

    def loss():
        logits, maps = zip(*(net(image) for net in (student, other)), strict=True)
        fused = fusion([taps["stage3"] for taps in maps])
        total = F.cross_entropy(fused, label) + divergence(fused, sum(logits) / 2)
        for z in logits:
            total = total + F.cross_entropy(z, label) + divergence(z, fused)
        return total

    return plain(loss, student, other, fusion)


def matrix(features):
    return features.flatten(2).transpose(1, 2)  # [B, HW, C]


def signed(vectors):
    """[B, C, K] with the sign that makes the sum of the largest and smallest entry positive."""
    sums = vectors.amax(1, keepdim=True) + vectors.amin(1, keepdim=True)
    return torch.where(sums >= 0, vectors, -vectors)


def aligned(student, teacher):
    """The right singular vectors [B, C, 1] of both maps; the student's best of four."""
    with torch.no_grad():
        v = signed(torch.linalg.svd(matrix(teacher), full_matrices=False).Vh[:, :1].mT)
    own = torch.linalg.svd(matrix(student), full_matrices=False).Vh[:, :4].mT
    cosine = own.mT @ v  # [B, 4, 1]
    best = cosine.detach().abs().argmax(1, keepdim=True)
    chosen = own.gather(2, best.expand(-1, own.shape[1], -1))
    return chosen * torch.sign(cosine.gather(1, best)).detach(), v


def svd_distillation(teachers, student, image, label):
    def relation(front, back):
        return torch.exp(-((back[:, :, None] - front[:, None]) ** 2) / 8)

    def losses():
        logits, taps = student(image)
        _, targets = asked(teachers[0], image)
        pairs, transfer = [aligned(taps[name], targets[name]) for name in TAPS], 0
        for front, back in itertools.pairwise(pairs):
            ours, theirs = (relation(f, b) for f, b in zip(front, back, strict=True))
            transfer = transfer + ((ours - theirs) ** 2).sum()
        return F.cross_entropy(logits, label), transfer

    return clipped(losses, student)


class Attention(nn.Module):
    """Graphs of attention between the examples' vectors of two taps."""

    def __init__(self, front, back, heads=8):
        super().__init__()
        width, self.heads = (front + back) // 2 * heads, heads
        self.sender = nn.Sequential(nn.Linear(back, width, bias=False), nn.BatchNorm1d(width))
        self.receiver = nn.Sequential(nn.Linear(front, width, bias=False), nn.BatchNorm1d(width))

    def forward(self, back, front):
        s, r = (part(x).view(len(x), -1, self.heads) for part, x in
                ((self.sender, back), (self.receiver, front)))  # fmt: skip
        return torch.einsum("ida,jda->aij", s, r)


def multi_head_graph_distillation(teachers, student, image, label):
    widths = [16, 32, 64] if student.head.in_features == 64 else [32, 64, 128]
    nets = [Attention(f, b).eval() for f, b in itertools.pairwise(widths)]
    for parameter in (p for net in nets for p in net.parameters()):
        parameter.requires_grad_(False)

    def losses():
        logits, taps = student(image)
        _, targets = asked(teachers[0], image)
        pairs, transfer = [aligned(taps[name], targets[name]) for name in TAPS], 0
        for net, (front, back) in zip(nets, itertools.pairwise(pairs), strict=True):
            ours, theirs = (
                F.log_softmax(torch.tanh(net(b[:, :, 0], f[:, :, 0])), -1)
                for f, b in zip(front, back, strict=True)
            )
            transfer = transfer + F.kl_div(theirs, ours, reduction="sum", log_target=True)
        return F.cross_entropy(logits, label), transfer

    return clipped(losses, student)


class Messages(nn.Module):
    """Two iterations of message passing between the examples of a batch."""

    def __init__(self, front, back):
        super().__init__()
        self.edge = nn.Sequential(nn.Linear(front, back, bias=False), nn.BatchNorm1d(back))
        for name in ("message", "gate"):
            layer = nn.Linear(back + 1, back, bias=False)
            self.add_module(name, nn.Sequential(layer, nn.BatchNorm1d(back)))

    def forward(self, back, front):
        count, width = back.shape
        e = F.normalize(self.edge(front))
        edges = width * e[:, None] * e[None]
        differences, messages = back[:, None] - back[None], []
        for _ in range(2):
            h = torch.cat([differences, edges.mean(-1, keepdim=True)], -1).view(-1, width + 1)
            message = (self.message(h) * torch.sigmoid(self.gate(h))).view(count, count, -1)
            messages.append(message)
            edges = edges + message
        return edges.mean(-1), torch.cat(messages, -1)


def to_plane(x):
    c = x.shape[-1] ** -0.5
    t = 2 / (1 + (x * c).sum(-1, keepdim=True)).clamp(min=1e-6)
    return (x + c) * t - 2 * c


def embedding_procedure_transfer(teachers, student, image, label):
    widths = [8, 16, 32] if student.head.in_features == 64 else [16, 32, 64]
    nets = [Messages(f, b).eval() for f, b in itertools.pairwise(widths)]
    for parameter in (p for net in nets for p in net.parameters()):
        parameter.requires_grad_(False)
    planes = [(torch.zeros(1, 2 * w), torch.randn(2 * w, w) / w**0.5) for w in widths]

    def vectors(student, teacher, plane):
        with torch.no_grad():
            u, _, vh = torch.linalg.svd(matrix(teacher), full_matrices=False)
            sign = torch.where(vh[:, 0].amax(1) + vh[:, 0].amin(1) >= 0, 1.0, -1.0)[:, None]
            u, v = u[:, :, 0] * sign, vh[:, 0] * sign
        own = F.normalize(torch.einsum("bpc,bp->bc", matrix(student), u))
        mean, components = plane
        return [(to_plane(x) - mean) @ components for x in (own, v)]

    def losses():
        logits, taps = student(image)
        _, targets = asked(teachers[0], image)
        pairs = [vectors(taps[n], targets[n], p) for n, p in zip(TAPS, planes, strict=True)]
        interim = alteration = 0
        for net, (front, back) in zip(nets, itertools.pairwise(pairs), strict=True):
            ours, messages = net(back[0], front[0])
            with torch.no_grad():
                theirs, target = net(back[1], front[1])
            p, q = F.log_softmax(theirs, -1), F.log_softmax(ours, -1)
            interim = interim + F.kl_div(q, p, reduction="sum", log_target=True)
            alteration = alteration + (messages - target).abs().sum(-1).mean()
        return F.cross_entropy(logits, label), interim, alteration

    return clipped(losses, student)


STEPS = {
    "ce": cross_entropy,
    "kd": knowledge_distillation,
    "activation_boundary": activation_boundary,
    "boundary_supporting_samples": boundary_supporting_samples,
    "overhaul_distillation": overhaul_distillation,
    "feed": feed,
    "feature_fusion_learning": feature_fusion_learning,
    "svd_distillation": svd_distillation,
    "multi_head_graph_distillation": multi_head_graph_distillation,
    "embedding_procedure_transfer": embedding_procedure_transfer,
}
