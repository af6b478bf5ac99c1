/*
 * Frames as bytes: COBS, CRC-32, little-endian numbers. What a frame means, and the protocol, are in agent.c.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MAX_PAYLOAD 16384
#define MAX_FRAME   (7 + MAX_PAYLOAD + 4) /* with what stands before and behind the payload */
#define MAX_ENCODED (MAX_FRAME + MAX_FRAME / 254 + 2)

struct frame {
	char type;
	uint16_t sequence;
	uint32_t id;
	uint8_t *payload;
	size_t length;
};

void put_le(uint8_t *to, uint64_t value, int bytes);
uint64_t get_le(const uint8_t *from, int bytes);

/* Writes at most MAX_ENCODED bytes, none of them zero; returns how many. */
size_t frame_encode(uint8_t *to, const struct frame *frame);

/*
 * Decodes in place; false for what is no frame. The payload then points into `data`, and the byte behind it may be
 * overwritten.
 */
bool frame_decode(struct frame *frame, uint8_t *data, size_t length);
