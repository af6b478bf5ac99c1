/*
 * The commands that the host has sent: started by /bin/sh, fed, their output passed on, their end told.
 */
#pragma once
#include <poll.h>
#include <stddef.h>
#include <stdint.h>

#define COMMANDS_POLLED 96 /* descriptors that commands_poll fills */

/* Starts a command under an id that is not in use; tells the host if it cannot. */
void command_run(uint32_t id, const char *text);

/* For a command that has ended already, these do nothing. */
void command_take_input(uint32_t id, const uint8_t *data, size_t length);
void command_signal(uint32_t id, int number);

/* Kills what runs, and says nothing about it. */
void commands_forget(void);

/* What the commands wait for, and what to do when some of it has come. */
void commands_poll(struct pollfd *polled);
void commands_serve(const struct pollfd *polled);

/* After SIGCHLD: notes who has ended. */
void commands_reap(void);

/* Tells the host of those that have ended, after the rest of their output. */
void commands_report(void);
