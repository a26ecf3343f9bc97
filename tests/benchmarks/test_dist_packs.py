"""The packs of published lengths, and the masks on them, are what their evaluations say."""

import dist_packs as packs
import torch


def dense(mask_of, *lengths):
    return packs.masked(list(lengths), mask_of).to_dense()[0]


def test_a_pack_is_full_and_no_document_is_over_a_quarter():
    for seed in range(4):
        lengths = packs.pack(1 << 14, seed)
        assert sum(lengths) == 1 << 14
        assert min(lengths) >= 1
        assert max(lengths) <= 1 << 12
        assert lengths == packs.pack(1 << 14, seed)
    assert packs.pack(1 << 14, 0) != packs.pack(1 << 14, 1)


def test_documents_see_themselves_alone():
    for length in (1, 7, 600):
        ones = torch.ones(length, length, dtype=torch.bool)
        alone = {packs.full: ones, packs.causal: ones.tril()}
        for mask_of, wanted in alone.items():
            seen = dense(mask_of, 5, length)
            assert torch.equal(seen[5:, 5:], wanted)
            assert not seen[5:, :5].any()
            assert not seen[:5, 5:].any()


def test_answers_see_the_question_and_themselves():
    seen = dense(packs.shared_question, 3, 11)[3:, 3:]  # a question of 3, four answers of 2
    wanted = torch.ones(11, 11, dtype=torch.bool).tril()
    for first in range(3, 11, 2):
        wanted[first + 2 :, first : first + 2] = False
    assert torch.equal(seen, wanted)


def test_lambda_sees_the_first_keys_and_a_window():
    seen = dense(packs.lambda_shaped, 5000)
    assert seen[4999].nonzero().flatten().tolist() == [*range(64), *range(904, 5000)]
    assert torch.equal(seen[:4160], torch.ones(4160, 5000, dtype=torch.bool).tril())


def test_blocks_see_themselves_and_one_more_and_the_last_sees_all():
    seen = dense(packs.blockwise, 1000)
    assert seen[100].nonzero().flatten().tolist() == list(range(101))
    assert seen[700].nonzero().flatten().tolist() == list(range(256, 701))
    assert seen[800].nonzero().flatten().tolist() == list(range(801))
