"""Shapes beside the models' and those of testing.CASES, so that some call reads every entry of every Triton table."""

from cct_kernels import testing

EXTRA = [
    testing.attention_case("B2_N256_C256_H4_mask_train", "text, 256 tokens", 2, 256, 256, 4, 0.1, mask=True),
    testing.attention_case("B2_N128_C128_H2", "text, 128 tokens", 2, 128, 128, 2),
    testing.attention_case("B2_N128_C128_H2_mask_train", "text, 128 tokens", 2, 128, 128, 2, 0.1, mask=True),
    testing.attention_case("B2_N256_C128_H4", "heads of 32 channels", 2, 256, 128, 4),
    testing.attention_case("B2_N256_C128_H4_mask_train", "heads of 32 channels", 2, 256, 128, 4, 0.1, mask=True),
    testing.attention_case("B2_N300_C128_H4_train", "heads of 32 channels", 2, 300, 128, 4, 0.1),
    testing.mlp_case("B2_N256_C256_F512_train", "CCT-7/3x1", 2, 256, 256, 512, dropout=0.1, drop_path=True),
    *(testing.seqpool_case(f"B2_N64_C{C}", "wide", 2, 64, C) for C in (64, 128, 512, 1024, 2048, 4096)),
]
