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
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define MAX_PAYLOAD  16384
#define HEADER       7
#define MAX_FRAME    (HEADER + MAX_PAYLOAD + 4)
#define MAX_COMMANDS 32
#define STDIN_WINDOW 8192
#define OUTPUT_CHUNK 4096
#define TX_HIGH      65536 /* above this, commands wait with their output */

struct command {
	uint32_t id; /* 0: free */
	pid_t pid;
	int in, out, err;
	bool ended, eof;
	int status;
	uint8_t input[STDIN_WINDOW];
	size_t input_length;
};

static struct command commands[MAX_COMMANDS];
static int line;
static uint8_t *tx; /* encoded, not yet written to the line */
static size_t tx_length, tx_size;
static uint16_t tx_sequence, rx_sequence;
static uint64_t session;
static uint32_t crc_table[256];

static uint32_t crc32(const uint8_t *data, size_t length)
{
	uint32_t crc = ~0u;

	while (length--)
		crc = crc_table[(crc ^ *data++) & 0xff] ^ (crc >> 8);
	return ~crc;
}

static void make_crc_table(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t crc = i;

		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
		crc_table[i] = crc;
	}
}

static void put_le(uint8_t *to, uint64_t value, int bytes)
{
	for (int i = 0; i < bytes; i++)
		to[i] = (uint8_t)(value >> 8 * i);
}

static uint64_t get_le(const uint8_t *from, int bytes)
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

static void send_frame(char type, uint32_t id, const void *payload, size_t length)
{
	uint8_t frame[MAX_FRAME];
	size_t worst = MAX_FRAME + MAX_FRAME / 254 + 4;

	if (tx_size - tx_length < worst) {
		tx_size = tx_length + worst;
		tx = realloc(tx, tx_size);
		if (tx == NULL)
			abort();
	}
	frame[0] = (uint8_t)type;
	put_le(frame + 1, tx_sequence++, 2);
	put_le(frame + 3, id, 4);
	if (length)
		memcpy(frame + HEADER, payload, length);
	put_le(frame + HEADER + length, crc32(frame, HEADER + length), 4);
	tx[tx_length++] = 0; /* ends whatever stands half-sent on the line */
	tx_length += cobs_encode(tx + tx_length, frame, HEADER + length + 4);
	tx[tx_length++] = 0;
}

static void send_number(char type, uint32_t id, uint32_t number)
{
	uint8_t payload[4];

	put_le(payload, number, 4);
	send_frame(type, id, payload, 4);
}

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
	send_frame('h', 0, payload, 8 + (size_t)length);
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void forget(struct command *command)
{
	close_fd(&command->in);
	close_fd(&command->out);
	close_fd(&command->err);
	command->id = 0;
}

static struct command *find(uint32_t id)
{
	for (int i = 0; i < MAX_COMMANDS; i++)
		if (commands[i].id == id)
			return &commands[i];
	return NULL;
}

static void start_session(uint64_t new_session)
{
	if (new_session == session)
		return;
	for (int i = 0; i < MAX_COMMANDS; i++) {
		if (commands[i].id == 0)
			continue;
		if (!commands[i].ended)
			kill(-commands[i].pid, SIGKILL);
		forget(&commands[i]);
	}
	session = new_session;
}

static void become_command(const char *text, int in, int out, int err)
{
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	setsid();
	if (dup2(in, 0) == 0 && dup2(out, 1) == 1 && dup2(err, 2) == 2)
		execl("/bin/sh", "sh", "-c", text, (char *)NULL);
	_exit(127);
}

static void run(uint32_t id, const char *text)
{
	int in[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1};
	struct command *command = find(0);
	pid_t pid = -1;
	int error = 0;

	if (command == NULL)
		error = EAGAIN;
	else if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC) || (pid = fork()) < 0)
		error = errno;
	if (pid == 0)
		become_command(text, in[0], out[1], err[1]);
	close_fd(&in[0]);
	close_fd(&out[1]);
	close_fd(&err[1]);
	if (error) {
		close_fd(&in[1]);
		close_fd(&out[0]);
		close_fd(&err[0]);
		send_number('f', id, (uint32_t)error);
		return;
	}
	fcntl(in[1], F_SETFL, O_NONBLOCK);
	fcntl(out[0], F_SETFL, O_NONBLOCK);
	fcntl(err[0], F_SETFL, O_NONBLOCK);
	setpgid(pid, pid); /* so that a signal which follows at once finds the group; setsid makes the same one */
	command->id = id;
	command->pid = pid;
	command->in = in[1];
	command->out = out[0];
	command->err = err[0];
	command->ended = command->eof = false;
	command->input_length = 0;
}

/* Writes what the command takes of its input, and tells the host. Input that nobody reads any more counts as consumed. */
static void feed(struct command *command)
{
	size_t consumed = 0;
	ssize_t count = 0;

	while (command->in >= 0 && consumed < command->input_length) {
		count = write(command->in, command->input + consumed, command->input_length - consumed);
		if (count < 0)
			break;
		consumed += (size_t)count;
	}
	if (count < 0 && errno != EAGAIN && errno != EINTR)
		close_fd(&command->in);
	if (command->in < 0)
		consumed = command->input_length;
	command->input_length -= consumed;
	memmove(command->input, command->input + consumed, command->input_length);
	if (consumed)
		send_number('k', command->id, (uint32_t)consumed);
	if (command->eof && command->input_length == 0)
		close_fd(&command->in);
}

static void take_input(struct command *command, const uint8_t *data, size_t length)
{
	if (length == 0)
		command->eof = true;
	if (length > STDIN_WINDOW - command->input_length) { /* the host broke the window */
		send_frame('l', 0, NULL, 0);
		return;
	}
	memcpy(command->input + command->input_length, data, length);
	command->input_length += length;
	feed(command);
}

/* Returns true when it has read something, false when there is nothing now, or ever again (the descriptor is closed). */
static bool pump(struct command *command, int *fd, char type)
{
	uint8_t data[OUTPUT_CHUNK];
	ssize_t count;

	if (*fd < 0 || tx_length >= TX_HIGH)
		return false;
	count = read(*fd, data, sizeof(data));
	if (count > 0)
		send_frame(type, command->id, data, (size_t)count);
	else if (count == 0 || (errno != EAGAIN && errno != EINTR))
		close_fd(fd);
	return count > 0;
}

static void report_ended(void)
{
	for (int i = 0; i < MAX_COMMANDS; i++) {
		struct command *command = &commands[i];

		if (command->id == 0 || !command->ended)
			continue;
		while (pump(command, &command->out, 'o') || pump(command, &command->err, 'e'))
			;
		if (tx_length >= TX_HIGH)
			return; /* the rest when the line has taken this */
		send_number('x', command->id, (uint32_t)command->status);
		forget(command);
	}
}

static void reap(int signals)
{
	struct signalfd_siginfo info;
	int status;
	pid_t pid;

	if (read(signals, &info, sizeof(info)) < 0)
		return;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (int i = 0; i < MAX_COMMANDS; i++)
			if (commands[i].id && !commands[i].ended && commands[i].pid == pid) {
				commands[i].ended = true;
				commands[i].status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
			}
}

static void handle(uint8_t *frame, size_t length)
{
	uint8_t *payload = frame + HEADER;
	uint16_t sequence;
	uint32_t id;
	struct command *command;

	if (length < HEADER + 4 || get_le(frame + length - 4, 4) != crc32(frame, length - 4))
		return;
	length -= HEADER + 4;
	sequence = (uint16_t)get_le(frame + 1, 2);
	id = (uint32_t)get_le(frame + 3, 4);
	if (frame[0] == 'H' && length == 8) {
		if (get_le(payload, 8) == session && sequence != rx_sequence)
			send_frame('l', 0, NULL, 0);
		start_session(get_le(payload, 8));
		send_hello(session);
	} else if (sequence != rx_sequence) {
		send_frame('l', 0, NULL, 0);
	}
	rx_sequence = (uint16_t)(sequence + 1);
	if (id == 0)
		return;
	command = find(id);
	if (frame[0] == 'R' && command == NULL) {
		payload[length] = '\0'; /* over the CRC, which is checked */
		run(id, (const char *)payload);
	} else if (frame[0] == 'I' && command != NULL) {
		take_input(command, payload, length);
	} else if (frame[0] == 'S' && command != NULL && length == 1 && !command->ended) {
		kill(-command->pid, payload[0]);
	}
}

static void receive(void)
{
	static uint8_t frame[MAX_FRAME + MAX_FRAME / 254 + 2];
	static size_t length;
	static bool overlong;
	uint8_t data[4096];
	ssize_t count = read(line, data, sizeof(data));

	if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR))
		exit(1); /* the line is gone */
	for (ssize_t i = 0; i < count; i++) {
		if (data[i] != 0) {
			overlong = overlong || length == sizeof(frame);
			if (!overlong)
				frame[length++] = data[i];
			continue;
		}
		if (!overlong)
			handle(frame, cobs_decode(frame, length));
		length = 0;
		overlong = false;
	}
}

static void transmit(void)
{
	ssize_t count = write(line, tx, tx_length);

	if (count < 0)
		return;
	tx_length -= (size_t)count;
	memmove(tx, tx + count, tx_length);
}

static void open_line(const char *path)
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
}

int main(int argc, char **argv)
{
	struct pollfd polled[2 + 3 * MAX_COMMANDS];
	sigset_t child;
	int signals;

	if (argc != 2) {
		fprintf(stderr, "usage: agent TTY\n");
		return 2;
	}
	make_crc_table();
	open_line(argv[1]);
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	signals = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
	send_hello(0);
	for (;;) {
		short output = tx_length < TX_HIGH ? POLLIN : 0;

		polled[0] = (struct pollfd){line, (short)(POLLIN | (tx_length ? POLLOUT : 0)), 0};
		polled[1] = (struct pollfd){signals, POLLIN, 0};
		for (int i = 0; i < MAX_COMMANDS; i++) {
			struct command *command = &commands[i];
			struct pollfd *fds = &polled[2 + 3 * i];
			bool live = command->id != 0;

			/* A closed peer is always reported: what is not waited for must not be polled. */
			fds[0] = (struct pollfd){live && command->input_length ? command->in : -1, POLLOUT, 0};
			fds[1] = (struct pollfd){live && output ? command->out : -1, POLLIN, 0};
			fds[2] = (struct pollfd){live && output ? command->err : -1, POLLIN, 0};
		}
		if (poll(polled, 2 + 3 * MAX_COMMANDS, -1) < 0 && errno != EINTR)
			return 1;
		for (int i = 0; i < MAX_COMMANDS; i++) {
			if (polled[2 + 3 * i].revents)
				feed(&commands[i]);
			if (polled[3 + 3 * i].revents)
				pump(&commands[i], &commands[i].out, 'o');
			if (polled[4 + 3 * i].revents)
				pump(&commands[i], &commands[i].err, 'e');
		}
		if (polled[1].revents)
			reap(signals);
		report_ended();
		if (polled[0].revents & ~POLLOUT)
			receive();
		if (tx_length)
			transmit();
	}
}
