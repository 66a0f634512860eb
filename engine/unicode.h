/*
 * unicode.h: the little that the tokenizer must know about characters.
 *
 * Classes, lower case and NFC are those of the library that CLIP prompts are tokenized with, which
 * follows an older Unicode release than today's in places; the tables are probed from it (see
 * tools/unicode). Lower case is per character: no final sigma, no language.
 */
#ifndef ATELIER_ENGINE_UNICODE_H
#define ATELIER_ENGINE_UNICODE_H

#include <stddef.h>
#include <stdint.h>

enum unicode_class { UNICODE_OTHER, UNICODE_LETTER, UNICODE_NUMBER, UNICODE_SPACE };

#define UNICODE_NFD_MAX 4 /* code points that one becomes */
#define UNICODE_LOWER_MAX 2

enum unicode_class unicode_class(uint32_t code);

/* Writes the lower case of `code` and returns how many code points it is. */
size_t unicode_to_lower(uint32_t code, uint32_t out[UNICODE_LOWER_MAX]);

/* Brings in[0..n) into normal form C in `out`, which has room for UNICODE_NFD_MAX × n, and returns
 * the new length. */
size_t unicode_to_nfc(const uint32_t *in, size_t n, uint32_t *out);

/* Reads one code point of text[*at..len), UTF-8 as RFC 3629 has it, and moves *at past it.
 * UINT32_MAX for bytes that are none. */
uint32_t unicode_read(const char *text, size_t len, size_t *at);

/* Writes UTF-8 and returns its bytes, 1 … 4. */
size_t unicode_write(uint32_t code, char out[4]);

#endif
