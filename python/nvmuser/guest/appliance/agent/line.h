/*
 * The serial line: a tty in raw mode, frames that wait to be written to it, and the frames found in what comes.
 * There is one line, so this has no handle.
 */
#pragma once
#include "frames.h"

/* Ends the program when the tty cannot be used. Returns the descriptor, which does not block. */
int line_open(const char *path);

/* The frame gets the next sequence number; `payload` is copied. */
void line_send(char type, uint32_t id, const void *payload, size_t length);
void line_send_number(char type, uint32_t id, uint32_t number);

/* Bytes that wait to be written. */
size_t line_waiting(void);

/* So many waiting bytes that nobody should add output. */
bool line_full(void);

/* Writes what the tty takes now. */
void line_transmit(void);

/* Reads what there is, and calls `take` for each frame in it. Ends the program when the tty is gone. */
void line_receive(void (*take)(struct frame *frame));
