/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Numbers in text. Not strtol() or sscanf(): compiled against a newer libc they
 * become functions that an older one does not have (__isoc23_strtol, glibc 2.38),
 * and the library must load into a QEMU that brings a libc of its own.
 */
#ifndef LV_NUMBER_H
#define LV_NUMBER_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Takes digits of base 10 or 16 (lower case) from *text on, which is moved behind
 * them. Returns false if there are none, or their value is above most.
 */
static inline bool
lv_parse_number(const char **text, unsigned int base, uint64_t most, uint64_t *value)
{
    const char *at = *text;

    *value = 0;
    for (;; at++) {
        unsigned int digit = *at >= '0' && *at <= '9' ? (unsigned int)(*at - '0')
                           : *at >= 'a' && *at <= 'f' ? (unsigned int)(*at - 'a') + 10
                           : base;

        if (digit >= base) {
            break;
        }
        if (digit > most || *value > (most - digit) / base) {
            return false;
        }
        *value = *value * base + digit;
    }
    if (at == *text) {
        return false;
    }
    *text = at;
    return true;
}

#endif /* LV_NUMBER_H */
