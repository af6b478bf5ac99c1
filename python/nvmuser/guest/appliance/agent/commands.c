#define _GNU_SOURCE
#include "commands.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "line.h"

#define MAX_COMMANDS (COMMANDS_POLLED / 3)
#define STDIN_WINDOW 8192
#define OUTPUT_CHUNK 4096

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

void commands_forget(void)
{
	for (int i = 0; i < MAX_COMMANDS; i++) {
		if (commands[i].id == 0)
			continue;
		if (!commands[i].ended)
			kill(-commands[i].pid, SIGKILL);
		forget(&commands[i]);
	}
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

void command_run(uint32_t id, const char *text)
{
	int in[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1};
	struct command *command;
	pid_t pid = -1;
	int error = 0;

	if (find(id) != NULL)
		return;
	command = find(0);
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
		line_send_number('f', id, (uint32_t)error);
		return;
	}
	fcntl(in[1], F_SETFL, O_NONBLOCK);
	fcntl(out[0], F_SETFL, O_NONBLOCK);
	fcntl(err[0], F_SETFL, O_NONBLOCK);
	setpgid(pid, pid); /* so that a signal which follows at once finds the group; setsid makes the same one */
	*command = (struct command){.id = id, .pid = pid, .in = in[1], .out = out[0], .err = err[0]};
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
		line_send_number('k', command->id, (uint32_t)consumed);
	if (command->eof && command->input_length == 0)
		close_fd(&command->in);
}

void command_take_input(uint32_t id, const uint8_t *data, size_t length)
{
	struct command *command = find(id);

	if (command == NULL)
		return;
	if (length == 0)
		command->eof = true;
	if (length > STDIN_WINDOW - command->input_length) { /* the host broke the window */
		line_send('l', 0, NULL, 0);
		return;
	}
	memcpy(command->input + command->input_length, data, length);
	command->input_length += length;
	feed(command);
}

void command_signal(uint32_t id, int number)
{
	struct command *command = find(id);

	if (command != NULL && !command->ended)
		kill(-command->pid, number);
}

/* Returns true when it has read something, false when there is nothing now, or ever again (the descriptor is closed). */
static bool pump(struct command *command, int *fd, char type)
{
	uint8_t data[OUTPUT_CHUNK];
	ssize_t count;

	if (*fd < 0 || line_full())
		return false;
	count = read(*fd, data, sizeof(data));
	if (count > 0)
		line_send(type, command->id, data, (size_t)count);
	else if (count == 0 || (errno != EAGAIN && errno != EINTR))
		close_fd(fd);
	return count > 0;
}

void commands_poll(struct pollfd *polled)
{
	for (int i = 0; i < MAX_COMMANDS; i++) {
		struct command *command = &commands[i];
		struct pollfd *fds = &polled[3 * i];
		bool live = command->id != 0;

		/* A closed peer is always reported: what is not waited for must not be polled. */
		fds[0] = (struct pollfd){live && command->input_length ? command->in : -1, POLLOUT, 0};
		fds[1] = (struct pollfd){live && !line_full() ? command->out : -1, POLLIN, 0};
		fds[2] = (struct pollfd){live && !line_full() ? command->err : -1, POLLIN, 0};
	}
}

void commands_serve(const struct pollfd *polled)
{
	for (int i = 0; i < MAX_COMMANDS; i++) {
		if (polled[3 * i].revents)
			feed(&commands[i]);
		if (polled[3 * i + 1].revents)
			pump(&commands[i], &commands[i].out, 'o');
		if (polled[3 * i + 2].revents)
			pump(&commands[i], &commands[i].err, 'e');
	}
}

void commands_reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (int i = 0; i < MAX_COMMANDS; i++)
			if (commands[i].id && !commands[i].ended && commands[i].pid == pid) {
				commands[i].ended = true;
				commands[i].status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
			}
}

void commands_report(void)
{
	for (int i = 0; i < MAX_COMMANDS; i++) {
		struct command *command = &commands[i];

		if (command->id == 0 || !command->ended)
			continue;
		while (pump(command, &command->out, 'o') || pump(command, &command->err, 'e'))
			;
		if (line_full())
			return; /* the rest when the line has taken this */
		line_send_number('x', command->id, (uint32_t)command->status);
		forget(command);
	}
}
