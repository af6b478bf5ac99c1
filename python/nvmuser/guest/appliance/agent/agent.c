/*
 * The guest's agent: runs commands that the host sends over a serial port, several at once, and sends back their output
 * while it comes, and their exit status. Usage: agent TTY
 *
 * The line. Frames are separated by zero bytes and contain none (COBS), so that whatever else reaches the line (kernel
 * messages, a half-sent frame of somebody killed) is recognised at the next zero byte and dropped. A frame, decoded:
 *
 *     type u8 | sequence u16 | command id u32 | payload | CRC-32 of all before, u32          (little-endian)
 *
 * Sequence numbers go up by one per frame and direction; a gap means that frames were lost, and the host then gives up the
 * commands that run: nothing is ever silently missing from their output.
 *
 *     host → guest                                     guest → host
 *     H session u64     hello; a new session ends      h session u64, boot id   answer to H, and unasked (session 0)
 *                       the commands of the last one                            when the agent starts
 *     R command         run with /bin/sh -c            o, e data                standard output, standard error
 *     I data            its standard input; empty:     k count u32              so much of the input is consumed
 *                       end of file                    x status i32             it ended (128 + n: by signal n)
 *     S signal u8       signal its process group       f errno u32              it could not be started
 *                                                      l                        frames were lost on the way to the guest
 *
 * The host sends at most STDIN_WINDOW bytes of input per command ahead of `k`, so that the agent always reads on: a tty
 * has no flow control here, and drops what it cannot hold.
 *
 * A command has ended when its first process has: what it left in the background loses its standard output.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "commands.h"
#include "line.h"

static uint16_t rx_sequence;
static uint64_t session;

static void send_hello(uint64_t to_session)
{
	uint8_t payload[8 + 64];
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t length = fd < 0 ? -1 : read(fd, payload + 8, 64);

	if (fd >= 0)
		close(fd);
	if (length < 0)
		length = 0;
	while (length > 0 && payload[8 + length - 1] == '\n')
		length--;
	put_le(payload, to_session, 8);
	line_send('h', 0, payload, 8 + (size_t)length);
}

static void handle(struct frame *frame)
{
	bool gap = frame->sequence != rx_sequence;
	bool hello = frame->type == 'H' && frame->length == 8;
	uint64_t new_session = hello ? get_le(frame->payload, 8) : session;

	rx_sequence = (uint16_t)(frame->sequence + 1);
	if (gap && new_session == session)
		line_send('l', 0, NULL, 0);
	if (new_session != session)
		commands_forget();
	session = new_session;
	if (hello)
		send_hello(session);
	if (frame->id == 0)
		return;
	if (frame->type == 'R') {
		frame->payload[frame->length] = '\0';
		command_run(frame->id, (const char *)frame->payload);
	} else if (frame->type == 'I') {
		command_take_input(frame->id, frame->payload, frame->length);
	} else if (frame->type == 'S' && frame->length == 1) {
		command_signal(frame->id, frame->payload[0]);
	}
}

static int watch_children(void)
{
	sigset_t child;

	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	return signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
}

int main(int argc, char **argv)
{
	struct pollfd polled[2 + COMMANDS_POLLED];
	struct signalfd_siginfo info;
	int line, children;

	if (argc != 2) {
		fprintf(stderr, "usage: agent TTY\n");
		return 2;
	}
	line = line_open(argv[1]);
	signal(SIGPIPE, SIG_IGN);
	children = watch_children();
	send_hello(0);
	for (;;) {
		polled[0] = (struct pollfd){line, (short)(POLLIN | (line_waiting() ? POLLOUT : 0)), 0};
		polled[1] = (struct pollfd){children, POLLIN, 0};
		commands_poll(polled + 2);
		if (poll(polled, 2 + COMMANDS_POLLED, -1) < 0 && errno != EINTR)
			return 1;
		commands_serve(polled + 2);
		if (polled[1].revents && read(children, &info, sizeof(info)) > 0)
			commands_reap();
		commands_report();
		if (polled[0].revents & ~POLLOUT)
			line_receive(handle);
		if (line_waiting())
			line_transmit();
	}
}
