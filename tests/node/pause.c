/* What holds the namespaces of a pod: it does nothing, and ends when it is told to. */
#include <signal.h>
#include <unistd.h>

static void end(int signal) {
    (void)signal;
    _exit(0);
}

int main(void) {
    signal(SIGINT, end);
    signal(SIGTERM, end);
    for (;;)
        pause();
}
