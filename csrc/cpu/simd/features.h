// What the kernels of each variant may use: a row of 0 and 1 for each that setup.py builds, where its compiler options
// stand. Code asks for what it needs, by name, so that a new variant is a row.
#pragma once

#ifndef FK_ISA_NS
#error "compile with -DFK_ISA_NS=portable|avx2|avx512|neon"
#endif
// A level that adds to another one has its vectors, and all that is made of them, in the namespace of that one; what
// asks for its own instructions is in this namespace. Files without this name are compiled once for both.
#ifndef FK_LEVEL_NS
#define FK_LEVEL_NS FK_ISA_NS
#endif
// A level that chooses otherwise among the kernels of another one has tables of its own, and no other file.
#ifndef FK_TABLE_NS
#define FK_TABLE_NS FK_LEVEL_NS
#endif

// clang-format off
//              AVX2 with FMA, BMI2 and F16C   AVX-512 F, BW, VL, DQ and CD   VBMI and VBMI2   VNNI   GFNI   BF16   tile registers   NEON   lookups and integer additions on pipes of their own
#define FK_FEATURES_portable 0,                0,                             0,               0,     0,     0,     0,               0,     0
#define FK_FEATURES_avx2     1,                0,                             0,               0,     0,     0,     0,               0,     0
#define FK_FEATURES_avx512   1,                1,                             0,               0,     0,     0,     0,               0,     0
#define FK_FEATURES_vnni     1,                1,                             1,               1,     1,     0,     0,               0,     0
#define FK_FEATURES_zen4     1,                1,                             1,               1,     1,     0,     0,               0,     1
#define FK_FEATURES_amx      1,                1,                             1,               1,     1,     1,     1,               0,     0
#define FK_FEATURES_neon     0,                0,                             0,               0,     0,     0,     0,               1,     0
// clang-format on

#define FK_JOIN(a, b) a##b
#define FK_ROW(variant) FK_JOIN(FK_FEATURES_, variant)
#define FK_PICK(column, ...) FK_JOIN(FK_COLUMN_, column)(__VA_ARGS__)
#define FK_COLUMN_1(a, b, c, d, e, f, g, h, i) a
#define FK_COLUMN_2(a, b, c, d, e, f, g, h, i) b
#define FK_COLUMN_3(a, b, c, d, e, f, g, h, i) c
#define FK_COLUMN_4(a, b, c, d, e, f, g, h, i) d
#define FK_COLUMN_5(a, b, c, d, e, f, g, h, i) e
#define FK_COLUMN_6(a, b, c, d, e, f, g, h, i) f
#define FK_COLUMN_7(a, b, c, d, e, f, g, h, i) g
#define FK_COLUMN_8(a, b, c, d, e, f, g, h, i) h
#define FK_COLUMN_9(a, b, c, d, e, f, g, h, i) i

#define FK_HAS_AVX2 FK_PICK(1, FK_ROW(FK_LEVEL_NS))
#define FK_HAS_AVX512 FK_PICK(2, FK_ROW(FK_LEVEL_NS))
#define FK_HAS_VBMI FK_PICK(3, FK_ROW(FK_LEVEL_NS))
#define FK_HAS_VNNI FK_PICK(4, FK_ROW(FK_LEVEL_NS))
#define FK_HAS_GFNI FK_PICK(5, FK_ROW(FK_LEVEL_NS))
#define FK_HAS_BF16 FK_PICK(6, FK_ROW(FK_LEVEL_NS))
#define FK_HAS_TILES FK_PICK(7, FK_ROW(FK_LEVEL_NS))
#define FK_HAS_NEON FK_PICK(8, FK_ROW(FK_LEVEL_NS))
#define FK_HAS_INTEGER_PIPES FK_PICK(9, FK_ROW(FK_TABLE_NS))

#if FK_HAS_AVX512 && !FK_HAS_AVX2
#error "vectors of 512 bits use those of 256"
#endif
#if FK_HAS_TILES && !(FK_HAS_AVX512 && FK_HAS_VBMI && FK_HAS_VNNI && FK_HAS_GFNI && FK_HAS_BF16)
#error "kernels on tile registers make their tiles with VBMI, GFNI and BF16"
#endif
