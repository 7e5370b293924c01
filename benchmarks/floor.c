/* Replays system calls: the beginning once, the rest COUNT times. See floor.py for the program.

   A line is: number, register for the result or "-", arguments. An argument is i123 (a number),
   r4 (a register) or s2f (bytes in hexadecimal, whose address is passed). Prints the
   mean, the median and the tenth percentile of a round in milliseconds. */

#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define REGISTERS 4096
#define MOST 16384

struct call {
    long number, arguments[6];
    int result, from[6];
};

static struct call calls[MOST];
static long registers[REGISTERS];

static long bytes(const char *text) {
    size_t length = strlen(text) / 2;
    char *buffer = malloc(length + 1);
    for (size_t i = 0; i < length; i++) {
        unsigned value;
        sscanf(text + 2 * i, "%2x", &value);
        buffer[i] = (char)value;
    }
    buffer[length] = 0;
    return (long)buffer;
}

static void perform(int from, int to) {
    for (int i = from; i < to; i++) {
        struct call *c = &calls[i];
        long a[6];
        for (int k = 0; k < 6; k++)
            a[k] = c->from[k] < 0 ? c->arguments[k] : registers[c->from[k]];
        long result = syscall(c->number, a[0], a[1], a[2], a[3], a[4], a[5]);
        if (result < 0) {
            fprintf(stderr, "call %d (number %ld): %s\n", i, c->number, strerror(errno));
            exit(1);
        }
        if (c->result >= 0)
            registers[c->result] = result;
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    FILE *file = fopen(argv[1], "r");
    int count = atoi(argv[2]), total = 0, loop = 0;
    static char line[65536];
    if (!file || count < 1)
        return 2;
    for (int i = 0; i < 3; i++)
        registers[i] = i;
    while (fgets(line, sizeof line, file) && total < MOST) {
        if (strcmp(line, "loop\n") == 0) {
            loop = total;
            continue;
        }
        struct call *c = &calls[total++];
        char *token = strtok(line, " \n");
        c->number = atol(token);
        token = strtok(NULL, " \n");
        c->result = *token == '-' ? -1 : atoi(token + 1);
        for (int k = 0; k < 6; k++) {
            c->from[k] = -1;
            if (!(token = strtok(NULL, " \n")))
                continue;
            if (*token == 'r')
                c->from[k] = atoi(token + 1);
            else
                c->arguments[k] = *token == 's' ? bytes(token + 1) : atol(token + 1);
        }
        for (int k = 0; k < 6; k++)
            if (c->from[k] >= REGISTERS || c->result >= REGISTERS)
                return 2;
    }
    perform(0, loop);
    double *rounds = malloc(count * sizeof *rounds), began = now();
    for (int i = 0; i < count; i++) {
        double start = now();
        perform(loop, total);
        rounds[i] = now() - start;
    }
    double mean = (now() - began) / count;
    qsort(rounds, count, sizeof *rounds, ascending);
    printf("{\"mean\": %f, \"median\": %f, \"p10\": %f}\n", mean, rounds[count / 2],
           rounds[count / 10]);
    return 0;
}
