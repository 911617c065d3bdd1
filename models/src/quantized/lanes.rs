//! The vector instructions of x86 processors behind the products of bytes.
//!
//! Every function is unsafe for one reason: the processor must have the instructions that
//! the type is named after. They are inlined into functions compiled for those instructions.
#![allow(
    clippy::inline_always,
    reason = "a call would leave the vector instructions behind"
)]

#[allow(clippy::wildcard_imports, reason = "sixty instructions")]
use std::arch::x86_64::*;

use super::tiles::BLOCK;

/// Registers of 32-bit numbers, and what the products of bytes do with them.
///
/// # Safety
/// All functions: the processor has the instructions, and pointers hold a whole register.
pub(super) trait Lanes {
    /// A register of `N` whole numbers, or of four times as many bytes.
    type Ints: Copy;
    /// A register of `N` floats.
    type Floats: Copy;
    /// Numbers of 32 bits in a register.
    const N: usize;
    /// What `dot` counts too much for each unit of the sum of `x`: the offset by which its
    /// weights are unsigned, if it takes them so.
    const OFFSET: i32;

    unsafe fn splat_int(value: i32) -> Self::Ints;
    unsafe fn splat(value: f32) -> Self::Floats;
    unsafe fn load(from: *const u8) -> Self::Ints;
    /// Widens `N` f16.
    unsafe fn load_f16(from: *const u16) -> Self::Floats;
    /// Widens `N` bytes.
    unsafe fn load_u8(from: *const u8) -> Self::Floats;
    /// Widens `N` signed bytes.
    unsafe fn load_i8(from: *const i8) -> Self::Floats;
    unsafe fn store(values: Self::Floats, to: *mut f32);
    /// The largest magnitude; infinite or NaN if any value is. Magnitudes order like their
    /// bits.
    unsafe fn largest_magnitude(values: &[f32; BLOCK]) -> f32;
    /// Writes the nearest whole numbers, ties to even, of `values * inverse` as bytes, and
    /// gives their sum.
    unsafe fn to_bytes(values: &[f32; BLOCK], inverse: f32, bytes: &mut [u32; BLOCK / 4]) -> i32;
    /// Adds to each number of `sums` four products of bytes: of weights, which are stored
    /// with 128 added, and of `x`, which are within -127..=127.
    unsafe fn dot(sums: Self::Ints, weights: Self::Ints, x: Self::Ints) -> Self::Ints;
    /// The same for weights within 0..=127, as they are.
    unsafe fn dot_small(sums: Self::Ints, weights: Self::Ints, x: Self::Ints) -> Self::Ints;
    /// Each byte's low four bits.
    unsafe fn low(bytes: Self::Ints) -> Self::Ints;
    /// Each byte's high four bits.
    unsafe fn high(bytes: Self::Ints) -> Self::Ints;
    /// `low`, of four bits, with the two bits of `high` from `2 * FIELD` on top.
    unsafe fn six<const FIELD: usize>(low: Self::Ints, high: Self::Ints) -> Self::Ints;
    /// `low`, of four bits, with the fifth bit of `plane` as its own.
    unsafe fn five(low: Self::Ints, plane: Self::Ints) -> Self::Ints;
    /// A bit down; what comes into a byte's high bits from its neighbour is not to be used.
    unsafe fn down(plane: Self::Ints) -> Self::Ints;
    /// Each byte's low four bits as its high ones.
    unsafe fn swap_up(plane: Self::Ints) -> Self::Ints;
    /// The same bits.
    unsafe fn as_floats(ints: Self::Ints) -> Self::Floats;
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once.
    unsafe fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// `a * b - c`, rounded once.
    unsafe fn mul_sub(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// `c - a * b`, rounded once.
    unsafe fn sub_mul(c: Self::Floats, a: Self::Floats, b: Self::Floats) -> Self::Floats;
}

/// AVX-512 with its products of bytes (VNNI): Ice Lake, Zen 4 and later.
pub(super) struct Avx512;

impl Lanes for Avx512 {
    type Ints = __m512i;
    type Floats = __m512;
    const N: usize = 16;
    const OFFSET: i32 = 128;

    #[inline(always)]
    unsafe fn splat_int(value: i32) -> __m512i {
        // SAFETY: the trait's condition; so in every function below.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        // SAFETY: see `splat_int`.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512i {
        // SAFETY: see `splat_int`.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> __m512 {
        // SAFETY: see `splat_int`.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> __m512 {
        // SAFETY: see `splat_int`.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> __m512 {
        // SAFETY: see `splat_int`.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn store(values: __m512, to: *mut f32) {
        // SAFETY: see `splat_int`.
        unsafe { _mm512_storeu_ps(to, values) }
    }

    #[inline(always)]
    unsafe fn largest_magnitude(values: &[f32; BLOCK]) -> f32 {
        // SAFETY: see `splat_int`; two registers hold a block.
        unsafe {
            let from = values.as_ptr();
            let magnitude = _mm512_set1_epi32(i32::MAX);
            let first = _mm512_and_si512(_mm512_loadu_si512(from.cast()), magnitude);
            let second = _mm512_and_si512(_mm512_loadu_si512(from.add(16).cast()), magnitude);
            f32::from_bits(_mm512_reduce_max_epu32(_mm512_max_epu32(first, second)))
        }
    }

    #[inline(always)]
    unsafe fn to_bytes(values: &[f32; BLOCK], inverse: f32, bytes: &mut [u32; BLOCK / 4]) -> i32 {
        // SAFETY: see `splat_int`; two registers hold a block.
        unsafe {
            let (from, to) = (values.as_ptr(), bytes.as_mut_ptr());
            let inverse = _mm512_set1_ps(inverse);
            let first = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(from), inverse));
            let second = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(from.add(16)), inverse));
            _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(first));
            _mm_storeu_si128(to.add(4).cast(), _mm512_cvtepi32_epi8(second));
            _mm512_reduce_add_epi32(_mm512_add_epi32(first, second))
        }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m512i, weights: __m512i, x: __m512i) -> __m512i {
        // SAFETY: see `splat_int`.
        unsafe { _mm512_dpbusd_epi32(sums, weights, x) }
    }

    #[inline(always)]
    unsafe fn dot_small(sums: __m512i, weights: __m512i, x: __m512i) -> __m512i {
        // SAFETY: see `splat_int`.
        unsafe { _mm512_dpbusd_epi32(sums, weights, x) }
    }

    #[inline(always)]
    unsafe fn low(bytes: __m512i) -> __m512i {
        // SAFETY: see `splat_int`.
        unsafe { _mm512_and_si512(bytes, _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    unsafe fn high(bytes: __m512i) -> __m512i {
        // SAFETY: see `splat_int`.
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    unsafe fn six<const FIELD: usize>(low: __m512i, high: __m512i) -> __m512i {
        // SAFETY: see `splat_int`.
        unsafe {
            let shifted = match FIELD {
                0 => _mm512_slli_epi16::<4>(high),
                1 => _mm512_slli_epi16::<2>(high),
                2 => high,
                _ => _mm512_srli_epi16::<2>(high),
            };
            _mm512_or_si512(low, _mm512_and_si512(shifted, _mm512_set1_epi8(0x30)))
        }
    }

    #[inline(always)]
    unsafe fn five(low: __m512i, plane: __m512i) -> __m512i {
        // SAFETY: see `splat_int`.
        unsafe { _mm512_or_si512(low, _mm512_and_si512(plane, _mm512_set1_epi8(0x10))) }
    }

    #[inline(always)]
    unsafe fn down(plane: __m512i) -> __m512i {
        // SAFETY: see `splat_int`.
        unsafe { _mm512_srli_epi16::<1>(plane) }
    }

    #[inline(always)]
    unsafe fn swap_up(plane: __m512i) -> __m512i {
        // SAFETY: see `splat_int`.
        unsafe { _mm512_slli_epi16::<4>(plane) }
    }

    #[inline(always)]
    unsafe fn as_floats(ints: __m512i) -> __m512 {
        // SAFETY: see `splat_int`.
        unsafe { _mm512_castsi512_ps(ints) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see `splat_int`.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see `splat_int`.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn mul_sub(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see `splat_int`.
        unsafe { _mm512_fmsub_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn sub_mul(c: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see `splat_int`.
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }
}

/// Half as wide, with VNNI (Alder Lake, Zen 5) or without (Haswell, Zen).
pub(super) struct Avx2<const VNNI: bool>;

impl<const VNNI: bool> Lanes for Avx2<VNNI> {
    type Ints = __m256i;
    type Floats = __m256;
    const N: usize = 8;
    const OFFSET: i32 = if VNNI { 128 } else { 0 };

    #[inline(always)]
    unsafe fn splat_int(value: i32) -> __m256i {
        // SAFETY: the trait's condition; so in every function below.
        unsafe { _mm256_set1_epi32(value) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m256 {
        // SAFETY: see `splat_int`.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m256i {
        // SAFETY: see `splat_int`.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> __m256 {
        // SAFETY: see `splat_int`.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> __m256 {
        // SAFETY: see `splat_int`.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> __m256 {
        // SAFETY: see `splat_int`.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn store(values: __m256, to: *mut f32) {
        // SAFETY: see `splat_int`.
        unsafe { _mm256_storeu_ps(to, values) }
    }

    #[inline(always)]
    unsafe fn largest_magnitude(values: &[f32; BLOCK]) -> f32 {
        // SAFETY: see `splat_int`; four registers hold a block.
        unsafe {
            let mut largest = _mm256_setzero_si256();
            for part in 0..BLOCK / 8 {
                let bits = _mm256_loadu_si256(values.as_ptr().add(8 * part).cast());
                let magnitudes = _mm256_and_si256(bits, _mm256_set1_epi32(i32::MAX));
                largest = _mm256_max_epu32(largest, magnitudes);
            }
            let (low, high) = halves(largest);
            let four = _mm_max_epu32(low, high);
            let two = _mm_max_epu32(four, _mm_shuffle_epi32::<0b_00_00_11_10>(four));
            let one = _mm_max_epu32(two, _mm_shuffle_epi32::<1>(two));
            f32::from_bits(_mm_cvtsi128_si32(one) as u32)
        }
    }

    #[inline(always)]
    unsafe fn to_bytes(values: &[f32; BLOCK], inverse: f32, bytes: &mut [u32; BLOCK / 4]) -> i32 {
        // SAFETY: see `splat_int`; four registers hold a block.
        unsafe {
            let inverse = _mm256_set1_ps(inverse);
            let mut quants = [_mm256_setzero_si256(); BLOCK / 8];
            for (part, quants) in quants.iter_mut().enumerate() {
                let values = _mm256_loadu_ps(values.as_ptr().add(8 * part));
                *quants = _mm256_cvtps_epi32(_mm256_mul_ps(values, inverse));
            }
            let first = _mm256_packs_epi32(quants[0], quants[1]);
            let second = _mm256_packs_epi32(quants[2], quants[3]);
            // Packing works within halves of a register, which leaves fours out of order.
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let packed = _mm256_packs_epi16(first, second);
            let packed = _mm256_permutevar8x32_epi32(packed, order);
            _mm256_storeu_si256(bytes.as_mut_ptr().cast(), packed);
            let sums = _mm256_add_epi32(
                _mm256_add_epi32(quants[0], quants[1]),
                _mm256_add_epi32(quants[2], quants[3]),
            );
            let (low, high) = halves(sums);
            let four = _mm_add_epi32(low, high);
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b_00_00_11_10>(four));
            let one = _mm_add_epi32(two, _mm_shuffle_epi32::<1>(two));
            _mm_cvtsi128_si32(one)
        }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m256i, weights: __m256i, x: __m256i) -> __m256i {
        // SAFETY: see `splat_int`.
        unsafe {
            if VNNI {
                return _mm256_dpbusd_avx_epi32(sums, weights, x);
            }
            // The sums of two products must fit i16, as 2 * 128 * 127 does, so both sides
            // are signed; the instruction wants one unsigned, so the weight's sign moves over.
            // Not x's: a weight may be -128, which has no negative.
            let weights = _mm256_xor_si256(weights, _mm256_set1_epi8(i8::MIN));
            let pairs =
                _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
            let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            _mm256_add_epi32(sums, fours)
        }
    }

    #[inline(always)]
    unsafe fn dot_small(sums: __m256i, weights: __m256i, x: __m256i) -> __m256i {
        // SAFETY: see `splat_int`.
        unsafe {
            if VNNI {
                return _mm256_dpbusd_avx_epi32(sums, weights, x);
            }
            let pairs = _mm256_maddubs_epi16(weights, x);
            let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            _mm256_add_epi32(sums, fours)
        }
    }

    #[inline(always)]
    unsafe fn low(bytes: __m256i) -> __m256i {
        // SAFETY: see `splat_int`.
        unsafe { _mm256_and_si256(bytes, _mm256_set1_epi8(15)) }
    }

    #[inline(always)]
    unsafe fn high(bytes: __m256i) -> __m256i {
        // SAFETY: see `splat_int`.
        unsafe { _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), _mm256_set1_epi8(15)) }
    }

    #[inline(always)]
    unsafe fn six<const FIELD: usize>(low: __m256i, high: __m256i) -> __m256i {
        // SAFETY: see `splat_int`.
        unsafe {
            let shifted = match FIELD {
                0 => _mm256_slli_epi16::<4>(high),
                1 => _mm256_slli_epi16::<2>(high),
                2 => high,
                _ => _mm256_srli_epi16::<2>(high),
            };
            _mm256_or_si256(low, _mm256_and_si256(shifted, _mm256_set1_epi8(0x30)))
        }
    }

    #[inline(always)]
    unsafe fn five(low: __m256i, plane: __m256i) -> __m256i {
        // SAFETY: see `splat_int`.
        unsafe { _mm256_or_si256(low, _mm256_and_si256(plane, _mm256_set1_epi8(0x10))) }
    }

    #[inline(always)]
    unsafe fn down(plane: __m256i) -> __m256i {
        // SAFETY: see `splat_int`.
        unsafe { _mm256_srli_epi16::<1>(plane) }
    }

    #[inline(always)]
    unsafe fn swap_up(plane: __m256i) -> __m256i {
        // SAFETY: see `splat_int`.
        unsafe { _mm256_slli_epi16::<4>(plane) }
    }

    #[inline(always)]
    unsafe fn as_floats(ints: __m256i) -> __m256 {
        // SAFETY: see `splat_int`.
        unsafe { _mm256_castsi256_ps(ints) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see `splat_int`.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: see `splat_int`.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn mul_sub(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: see `splat_int`.
        unsafe { _mm256_fmsub_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn sub_mul(c: __m256, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see `splat_int`.
        unsafe { _mm256_fnmadd_ps(a, b, c) }
    }
}

/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn halves(register: __m256i) -> (__m128i, __m128i) {
    // SAFETY: the caller's.
    unsafe {
        (
            _mm256_castsi256_si128(register),
            _mm256_extracti128_si256::<1>(register),
        )
    }
}
