//! SHA-256 of sixteen chunks at once, in the sixteen 32-bit lanes of AVX-512 (FIPS 180-4, sections 5 and 6.2).
//!
//! One SHA-256 waits for itself: each round needs the last one, and the processor's own instructions for it take
//! 2 GB/s. Sixteen that do not need each other go at more than twice that on the same core. They must be equally long,
//! as chunks are.
//!
//! ```text
//!   chunk 0   w0 w1 w2 .. w15            lane   0  1  2 .. 15
//!   chunk 1   w0 w1 w2 .. w15     -->    w0     c0 c1 c2 .. c15
//!   ..                                   w1     c0 c1 c2 .. c15
//! ```

use std::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_loadu_si512, _mm512_ror_epi32, _mm512_set1_epi32,
    _mm512_set4_epi32, _mm512_shuffle_epi8, _mm512_shuffle_i32x4, _mm512_srli_epi32,
    _mm512_storeu_si512, _mm512_ternarylogic_epi32, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::{CHUNK, Start};

/// Chunks that are hashed at once.
const LANES: usize = 16;
/// Fewer are better hashed otherwise: all lanes take as long as ten chunks in [`streams`](super::streams).
const LANES_MIN: usize = 10;
const BLOCK: usize = 64;

/// Constants, section 4.2.2.
pub(super) const K: [u32; 64] = [
    0x428a_2f98,
    0x7137_4491,
    0xb5c0_fbcf,
    0xe9b5_dba5,
    0x3956_c25b,
    0x59f1_11f1,
    0x923f_82a4,
    0xab1c_5ed5,
    0xd807_aa98,
    0x1283_5b01,
    0x2431_85be,
    0x550c_7dc3,
    0x72be_5d74,
    0x80de_b1fe,
    0x9bdc_06a7,
    0xc19b_f174,
    0xe49b_69c1,
    0xefbe_4786,
    0x0fc1_9dc6,
    0x240c_a1cc,
    0x2de9_2c6f,
    0x4a74_84aa,
    0x5cb0_a9dc,
    0x76f9_88da,
    0x983e_5152,
    0xa831_c66d,
    0xb003_27c8,
    0xbf59_7fc7,
    0xc6e0_0bf3,
    0xd5a7_9147,
    0x06ca_6351,
    0x1429_2967,
    0x27b7_0a85,
    0x2e1b_2138,
    0x4d2c_6dfc,
    0x5338_0d13,
    0x650a_7354,
    0x766a_0abb,
    0x81c2_c92e,
    0x9272_2c85,
    0xa2bf_e8a1,
    0xa81a_664b,
    0xc24b_8b70,
    0xc76c_51a3,
    0xd192_e819,
    0xd699_0624,
    0xf40e_3585,
    0x106a_a070,
    0x19a4_c116,
    0x1e37_6c08,
    0x2748_774c,
    0x34b0_bcb5,
    0x391c_0cb3,
    0x4ed8_aa4a,
    0x5b9c_ca4f,
    0x682e_6ff3,
    0x748f_82ee,
    0x78a5_636f,
    0x84c8_7814,
    0x8cc7_0208,
    0x90be_fffa,
    0xa450_6ceb,
    0xbef9_a3f7,
    0xc671_78f2,
];

/// Whether this processor has what [`digests`] needs.
fn are_there() -> bool {
    std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("avx512bw")
}

/// The SHA-256 of each chunk, after what `start` stands for; `None` where the processor cannot, and for few.
pub(super) fn digests(chunks: &[&[u8; CHUNK]], start: Start) -> Option<Vec<[u8; 32]>> {
    if !are_there() || !(LANES_MIN..=LANES).contains(&chunks.len()) {
        return None;
    }
    // Lanes that are left over hash the first one again.
    let all = std::array::from_fn(|at| *chunks.get(at).unwrap_or(&chunks[0]));
    #[expect(
        unsafe_code,
        reason = "a function for a processor that has AVX-512; half as fast again as the next best: 4.2 GB/s a core, streams 2.8"
    )]
    // SAFETY: the processor has both features that the function is compiled for, as was just asked.
    let digests = unsafe { digests_avx512(&all, start) };
    Some(digests[..chunks.len()].to_vec())
}

#[target_feature(enable = "avx512f,avx512bw")]
fn digests_avx512(chunks: &[&[u8; CHUNK]; LANES], start: Start) -> [[u8; 32]; LANES] {
    // Loops, here and below: what is passed to `map` is not compiled into a function for another processor.
    let mut state = [broadcast(0); 8];
    for (state, start) in state.iter_mut().zip(start.state) {
        *state = broadcast(start);
    }
    for block in 0..CHUNK / BLOCK {
        let mut rows = [broadcast(0); LANES];
        for (row, chunk) in rows.iter_mut().zip(chunks) {
            *row = load(chunk, block);
        }
        compress(&mut state, transpose(rows));
    }
    compress(&mut state, padding(start.hashed + CHUNK));
    let mut out = [[0; 32]; LANES];
    for (word, lanes) in state.iter().enumerate() {
        for (digest, value) in out.iter_mut().zip(store(*lanes)) {
            digest[word * 4..][..4].copy_from_slice(&value.to_be_bytes());
        }
    }
    out
}

/// What follows after whole blocks: one bit, zeroes, and the length in bits. It is the same for all.
#[target_feature(enable = "avx512f")]
fn padding(bytes: usize) -> [__m512i; 16] {
    let mut block = [broadcast(0); 16];
    block[0] = broadcast(1 << 31);
    block[15] = broadcast(u32::try_from(bytes * 8).expect("a chunk is small"));
    block
}

/// Section 6.2.2, in each lane.
#[target_feature(enable = "avx512f")]
fn compress(state: &mut [__m512i; 8], mut w: [__m512i; 16]) {
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
    for round in (0..64).step_by(16) {
        for at in 0..16 {
            if round > 0 {
                let s0 = {
                    let w = w[(at + 1) % 16];
                    xor(rotate::<7>(w), rotate::<18>(w), _mm512_srli_epi32::<3>(w))
                };
                let s1 = {
                    let w = w[(at + 14) % 16];
                    xor(rotate::<17>(w), rotate::<19>(w), _mm512_srli_epi32::<10>(w))
                };
                w[at] = add(add(w[at], s0), add(w[(at + 9) % 16], s1));
            }
            let s1 = xor(rotate::<6>(e), rotate::<11>(e), rotate::<25>(e));
            // e ? f : g
            let choice = _mm512_ternarylogic_epi32::<0xca>(e, f, g);
            let k = add(broadcast(K[round + at]), w[at]);
            let t1 = add(add(h, s1), add(choice, k));
            let s0 = xor(rotate::<2>(a), rotate::<13>(a), rotate::<22>(a));
            // What two of three have.
            let majority = _mm512_ternarylogic_epi32::<0xe8>(a, b, c);
            let t2 = add(s0, majority);
            (h, g, f, e, d, c, b, a) = (g, f, e, add(d, t1), c, b, a, add(t1, t2));
        }
    }
    for (state, new) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *state = add(*state, new);
    }
}

/// Sixteen big-endian words of each of sixteen chunks, so that each vector has one word of all.
#[target_feature(enable = "avx512f,avx512bw")]
fn transpose(mut rows: [__m512i; 16]) -> [__m512i; 16] {
    let swap = _mm512_set4_epi32(0x0c0d_0e0f, 0x0809_0a0b, 0x0405_0607, 0x0001_0203);
    for row in &mut rows {
        *row = _mm512_shuffle_epi8(*row, swap);
    }
    let mut pairs = rows;
    for at in (0..16).step_by(2) {
        pairs[at] = _mm512_unpacklo_epi32(rows[at], rows[at + 1]);
        pairs[at + 1] = _mm512_unpackhi_epi32(rows[at], rows[at + 1]);
    }
    let mut fours = pairs;
    for at in (0..16).step_by(4) {
        fours[at] = _mm512_unpacklo_epi64(pairs[at], pairs[at + 2]);
        fours[at + 1] = _mm512_unpackhi_epi64(pairs[at], pairs[at + 2]);
        fours[at + 2] = _mm512_unpacklo_epi64(pairs[at + 1], pairs[at + 3]);
        fours[at + 3] = _mm512_unpackhi_epi64(pairs[at + 1], pairs[at + 3]);
    }
    // Quarter q of `fours[4 * i + j]` has word 4 * q + j of rows 4 * i to 4 * i + 3.
    const EVEN: i32 = 0x88;
    const ODD: i32 = 0xdd;
    let mut words = fours;
    for j in 0..4 {
        let low = _mm512_shuffle_i32x4::<EVEN>(fours[j], fours[4 + j]);
        let high = _mm512_shuffle_i32x4::<EVEN>(fours[8 + j], fours[12 + j]);
        words[j] = _mm512_shuffle_i32x4::<EVEN>(low, high);
        words[8 + j] = _mm512_shuffle_i32x4::<ODD>(low, high);
        let low = _mm512_shuffle_i32x4::<ODD>(fours[j], fours[4 + j]);
        let high = _mm512_shuffle_i32x4::<ODD>(fours[8 + j], fours[12 + j]);
        words[4 + j] = _mm512_shuffle_i32x4::<EVEN>(low, high);
        words[12 + j] = _mm512_shuffle_i32x4::<ODD>(low, high);
    }
    words
}

#[target_feature(enable = "avx512f")]
fn load(chunk: &[u8; CHUNK], block: usize) -> __m512i {
    let bytes: &[u8; BLOCK] = chunk[block * BLOCK..][..BLOCK]
        .try_into()
        .expect("64 bytes");
    #[expect(unsafe_code, reason = "std has no safe load of a vector from bytes")]
    // SAFETY: 64 bytes are readable at the reference; the load wants no alignment.
    unsafe {
        _mm512_loadu_si512(bytes.as_ptr().cast())
    }
}

#[target_feature(enable = "avx512f")]
fn store(lanes: __m512i) -> [u32; LANES] {
    let mut words = [0_u32; LANES];
    #[expect(unsafe_code, reason = "std has no safe store of a vector to words")]
    // SAFETY: the array has the 64 bytes that are written; the store wants no alignment.
    unsafe {
        _mm512_storeu_si512(words.as_mut_ptr().cast(), lanes);
    }
    words
}

#[target_feature(enable = "avx512f")]
fn broadcast(word: u32) -> __m512i {
    _mm512_set1_epi32(word.cast_signed())
}

#[target_feature(enable = "avx512f")]
fn add(a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi32(a, b)
}

#[target_feature(enable = "avx512f")]
fn xor(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<0x96>(a, b, c)
}

#[target_feature(enable = "avx512f")]
fn rotate<const BITS: i32>(a: __m512i) -> __m512i {
    _mm512_ror_epi32::<BITS>(a)
}
