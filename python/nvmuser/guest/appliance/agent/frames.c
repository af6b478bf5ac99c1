#include "frames.h"

#include <string.h>

#define HEADER 7
#define CRC    4

static uint32_t crc32(const uint8_t *data, size_t length)
{
	static uint32_t table[256];
	uint32_t crc = ~0u;

	for (uint32_t i = 0; table[255] == 0 && i < 256; i++) {
		uint32_t entry = i;

		for (int bit = 0; bit < 8; bit++)
			entry = entry >> 1 ^ (entry & 1 ? 0xedb88320u : 0);
		table[i] = entry;
	}
	while (length--)
		crc = table[(crc ^ *data++) & 0xff] ^ (crc >> 8);
	return ~crc;
}

void put_le(uint8_t *to, uint64_t value, int bytes)
{
	for (int i = 0; i < bytes; i++)
		to[i] = (uint8_t)(value >> 8 * i);
}

uint64_t get_le(const uint8_t *from, int bytes)
{
	uint64_t value = 0;

	for (int i = 0; i < bytes; i++)
		value |= (uint64_t)from[i] << 8 * i;
	return value;
}

/* Returns the decoded length, or 0 for what cannot be a frame. In place: decoded bytes never overtake encoded ones. */
static size_t cobs_decode(uint8_t *data, size_t length)
{
	size_t in = 0, out = 0;

	while (in < length) {
		uint8_t code = data[in++];

		if (code == 0 || in + code - 1 > length)
			return 0;
		for (int i = 1; i < code; i++)
			data[out++] = data[in++];
		if (code != 0xff && in < length)
			data[out++] = 0;
	}
	return out;
}

static size_t cobs_encode(uint8_t *to, const uint8_t *data, size_t length)
{
	size_t code_at = 0, out = 1;
	uint8_t code = 1;

	for (size_t i = 0; i < length; i++) {
		if (data[i] != 0) {
			to[out++] = data[i];
			code++;
		}
		if (data[i] == 0 || code == 0xff) {
			to[code_at] = code;
			code_at = out++;
			code = 1;
		}
	}
	to[code_at] = code;
	return out;
}

size_t frame_encode(uint8_t *to, const struct frame *frame)
{
	uint8_t data[MAX_FRAME];
	size_t length = HEADER + frame->length;

	data[0] = (uint8_t)frame->type;
	put_le(data + 1, frame->sequence, 2);
	put_le(data + 3, frame->id, 4);
	if (frame->length)
		memcpy(data + HEADER, frame->payload, frame->length);
	put_le(data + length, crc32(data, length), CRC);
	return cobs_encode(to, data, length + CRC);
}

bool frame_decode(struct frame *frame, uint8_t *data, size_t length)
{
	length = cobs_decode(data, length);
	if (length < HEADER + CRC || get_le(data + length - CRC, CRC) != crc32(data, length - CRC))
		return false;
	frame->type = (char)data[0];
	frame->sequence = (uint16_t)get_le(data + 1, 2);
	frame->id = (uint32_t)get_le(data + 3, 4);
	frame->payload = data + HEADER;
	frame->length = length - HEADER - CRC;
	return true;
}
