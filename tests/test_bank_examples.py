"""The examples of many masks: ten tasks in one file, told from each other; and federated masks of one bit each way."""

from __future__ import annotations

import federated_masks
import pytest
import task_bank
import torch

import frozen_kernels as fk
from frozen_kernels.tickets.file import read_ticket


def test_ten_tasks_cost_their_bits(tmp_path):
    tasks = task_bank.permuted_digits()
    assert len({tuple(task.train_x[0].tolist()) for task in tasks}) == len(tasks) == 10
    short = [task._replace(train_x=task.train_x[:64], train_y=task.train_y[:64]) for task in tasks]
    bank = task_bank.learn(short, epochs=1, width=48)
    masks = [fk.masks(bank.model) for name in bank.names if bank.use(name) is None]
    assert len({tuple(mask.tolist()) for mask in masks}) == 10
    bank.save(tmp_path / "bank")
    ticket = read_ticket(tmp_path / "bank")
    # of the backbone there is a seed alone
    assert ticket.file_bytes - ticket.header_bytes == 10 * masks[0].numel()
    assert 8 * masks[0].numel() == 48 * (64 + 48 + 100)
    assert fk.MaskBank.load(task_bank.build_net(48), tmp_path / "bank").names == [task.name for task in tasks]


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1])
def test_the_task_is_inferred_without_its_label(seed):
    tasks = task_bank.permuted_digits(seed=seed)
    rows = task_bank.measure(task_bank.learn(tasks, seed=seed), tasks)
    assert min(row.accuracy for row in rows) > 0.9
    for how in ("one_shot", "binary"):
        assert sum(getattr(row, how) == row.name for row in rows) >= 9


def test_clients_send_a_bit_for_each_weight():
    clients, test = federated_masks.clients_of(3)
    assert sum(len(client.y) for client in clients) == 1437 and len(test.y) == 360
    few = [federated_masks.Client(client.x[:96], client.y[:96]) for client in clients]
    (first,) = federated_masks.run(federated_masks.Masks(few), test, rounds=1, epochs=2)
    assert first.up == first.down == 84_480 // 8 and first.accuracy > 0.3  # by chance 0.1
    (dense,) = federated_masks.run(federated_masks.Averaging(few), test, rounds=1, epochs=1)
    assert dense.up == dense.down == 4 * 84_480


@pytest.mark.long
def test_federated_masks_learn():
    clients, test = federated_masks.clients_of()
    assert federated_masks.run(federated_masks.Masks(clients), test, rounds=10)[-1].accuracy > 0.93


def test_probabilities_are_in_the_order_of_masks():
    clients, _ = federated_masks.clients_of(2)
    side = federated_masks.Masks(clients)
    mean = torch.rand(side.mean.numel()).clamp(0.05, 0.95)
    fk.load_mean(side.model, mean)
    torch.testing.assert_close(federated_masks.probabilities(side.model), mean)
