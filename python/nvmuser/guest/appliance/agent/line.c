#define _GNU_SOURCE
#include "line.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#define TX_HIGH 65536

static int line;
static uint8_t *tx; /* encoded, not yet written */
static size_t tx_length, tx_size;
static uint16_t tx_sequence;

int line_open(const char *path)
{
	struct termios settings;

	line = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	if (line < 0 || tcgetattr(line, &settings)) {
		perror(path);
		exit(1);
	}
	cfmakeraw(&settings);
	settings.c_cflag |= CLOCAL | CREAD;
	settings.c_cflag &= (tcflag_t)~CRTSCTS;
	cfsetspeed(&settings, B115200);
	tcsetattr(line, TCSANOW, &settings);
	tcflush(line, TCIFLUSH);
	return line;
}

void line_send(char type, uint32_t id, const void *payload, size_t length)
{
	struct frame frame = {type, tx_sequence++, id, (uint8_t *)payload, length};

	if (tx_size - tx_length < MAX_ENCODED + 2) {
		tx_size = tx_length + MAX_ENCODED + 2;
		tx = realloc(tx, tx_size);
		if (tx == NULL)
			abort();
	}
	tx[tx_length++] = 0; /* ends whatever stands half-sent on the line */
	tx_length += frame_encode(tx + tx_length, &frame);
	tx[tx_length++] = 0;
}

void line_send_number(char type, uint32_t id, uint32_t number)
{
	uint8_t payload[4];

	put_le(payload, number, 4);
	line_send(type, id, payload, 4);
}

size_t line_waiting(void)
{
	return tx_length;
}

bool line_full(void)
{
	return tx_length >= TX_HIGH;
}

void line_transmit(void)
{
	ssize_t count = write(line, tx, tx_length);

	if (count < 0)
		return;
	tx_length -= (size_t)count;
	memmove(tx, tx + count, tx_length);
}

void line_receive(void (*take)(struct frame *frame))
{
	static uint8_t encoded[MAX_ENCODED];
	static size_t length;
	static bool overlong;
	struct frame frame;
	uint8_t data[4096];
	ssize_t count = read(line, data, sizeof(data));

	if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR))
		exit(1);
	for (ssize_t i = 0; i < count; i++) {
		if (data[i] != 0) {
			overlong = overlong || length == sizeof(encoded);
			if (!overlong)
				encoded[length++] = data[i];
			continue;
		}
		if (!overlong && frame_decode(&frame, encoded, length))
			take(&frame);
		length = 0;
		overlong = false;
	}
}
