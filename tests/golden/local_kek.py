"""Writes local_kek.tsv: golden vectors of the local-KEK format, made apart from the Rust code.

AES-256-GCM is written out here, by FIPS 197 and NIST SP 800-38D, so that the script needs nothing but Python.
It checks itself with test case 16 of the GCM specification before it writes anything.
The layout is described in docs/local-kek.md.
"""

import struct

FORMAT = b"lk1:"
MARK = b"transit-kms lk1\0"

# (KEK, nonce, key_id, wrapped KEK, seed)
CASES = [
    (
        bytes(range(32)),
        bytes(range(0xA0, 0xAC)),
        "tk1.6f1e0d7a2b3c4d5e6f708192a3b4c5d6.1.0123456789abcdef",
        "vault:v1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4v",
        bytes(range(0x40, 0x60)),
    ),
    (bytes([0xFF] * 32), bytes(12), "tk1.0.4294967295.0", "vault:v4294967295:QUJD", b"s"),
    (bytes(range(31, -1, -1)), bytes([0x5A] * 12), "id", "vault:v2:QQ==", bytes(48)),
    (bytes(32), bytes(range(12)), "k" * 1024, "vault:v3:" + "A" * 1015, bytes(range(200)) * 3),
]


def multiply(a, b):
    """In the field of AES."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a <<= 1
        if a & 0x100:
            a ^= 0x11B
        b >>= 1
    return product


def substitutions():
    """The S-box: the inverse in the field, then an affine map."""
    table = []
    for value in range(256):
        inverse = next((other for other in range(256) if multiply(value, other) == 1), 0)
        mapped = 0x63
        for shift in range(5):
            mapped ^= (inverse << shift | inverse >> (8 - shift)) & 0xFF
        table.append(mapped)
    return table


SBOX = substitutions()


def round_keys(key):
    words = [list(key[index : index + 4]) for index in range(0, 32, 4)]
    constant = 1
    for index in range(8, 60):
        word = list(words[-1])
        if index % 8 == 0:
            word = [SBOX[byte] for byte in word[1:] + word[:1]]
            word[0] ^= constant
            constant = multiply(constant, 2)
        elif index % 8 == 4:
            word = [SBOX[byte] for byte in word]
        words.append([a ^ b for a, b in zip(words[-8], word)])
    return [sum(words[index : index + 4], []) for index in range(0, 60, 4)]


def encrypt_block(keys, block):
    state = [a ^ b for a, b in zip(block, keys[0])]
    for number, key in enumerate(keys[1:], 1):
        state = [SBOX[state[(index + 4 * (index % 4)) % 16]] for index in range(16)]
        if number < 14:
            mixed = []
            for column in range(0, 16, 4):
                a, b, c, d = state[column : column + 4]
                for w, x, y, z in ((a, b, c, d), (b, c, d, a), (c, d, a, b), (d, a, b, c)):
                    mixed.append(multiply(w, 2) ^ multiply(x, 3) ^ y ^ z)
            state = mixed
        state = [a ^ b for a, b in zip(state, key)]
    return bytes(state)


def ghash(subkey, data):
    """Over whole blocks."""
    digest = 0
    for index in range(0, len(data), 16):
        value, factor, product = subkey, digest ^ int.from_bytes(data[index : index + 16], "big"), 0
        for bit in range(127, -1, -1):
            if factor >> bit & 1:
                product ^= value
            value = value >> 1 ^ (0xE1 << 120 if value & 1 else 0)
        digest = product
    return digest.to_bytes(16, "big")


def padded(data):
    return data + bytes(-len(data) % 16)


def xor(a, b):
    return bytes(x ^ y for x, y in zip(a, b))


def seal(key, nonce, plaintext, aad):
    """AES-256-GCM: the ciphertext, then the tag of 16 bytes."""
    keys = round_keys(key)
    stream = b""
    for counter in range(2, 3 + len(plaintext) // 16):
        stream += encrypt_block(keys, nonce + struct.pack(">I", counter))
    ciphertext = xor(plaintext, stream)
    subkey = int.from_bytes(encrypt_block(keys, bytes(16)), "big")
    lengths = struct.pack(">QQ", 8 * len(aad), 8 * len(ciphertext))
    digest = ghash(subkey, padded(aad) + padded(ciphertext) + lengths)
    return ciphertext + xor(digest, encrypt_block(keys, nonce + struct.pack(">I", 1)))


def check():
    key = "feffe9928665731c6d6a8f9467308308" * 2
    plaintext = (
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    )
    aad = "feedfacedeadbeeffeedfacedeadbeefabaddad2"
    expected = (
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
        "76fc6ece0f4e1768cddf8853bb2d551b"
    )
    sealed = seal(*(bytes.fromhex(text) for text in (key, "cafebabefacedbaddecaf888", plaintext, aad)))
    assert sealed.hex() == expected, "this is not AES-256-GCM"


def bound(key_id, wrapped):
    """What is authenticated with the seed."""
    data = FORMAT
    for part in (key_id.encode(), wrapped.encode()):
        data += struct.pack(">I", len(part)) + part
    return data


check()
with open("local_kek.tsv", "w", encoding="utf-8") as out:
    out.write("# payload\tkey_id\twrapped\tseed\taad\tciphertext; all but key_id and wrapped in hex\n")
    for kek, nonce, key_id, wrapped, seed in CASES:
        aad = bound(key_id, wrapped)
        sealed = FORMAT + nonce + seal(kek, nonce, seed, aad)
        fields = (MARK + kek).hex(), key_id, wrapped, seed.hex(), aad.hex(), sealed.hex()
        out.write("\t".join(fields) + "\n")
