/* Says what happens to the paths that it is called with: one line for each event, "ready" first. */
#include <limits.h>
#include <stdio.h>
#include <sys/inotify.h>
#include <unistd.h>

static const struct {
    unsigned mask;
    const char *name;
} kinds[] = {
    {IN_CREATE, "create"},         {IN_MOVED_TO, "moved-to"}, {IN_CLOSE_WRITE, "written"}, {IN_DELETE, "delete"},
    {IN_DELETE_SELF, "gone"},      {IN_ATTRIB, "attributes"},
};

int main(int count, char **paths)
{
    _Alignas(struct inotify_event) char buffer[16 * (sizeof(struct inotify_event) + NAME_MAX + 1)];
    int queue = inotify_init();
    unsigned wanted = 0;

    for (unsigned kind = 0; kind < sizeof kinds / sizeof *kinds; kind++)
        wanted |= kinds[kind].mask;
    for (int path = 1; path < count; path++)
        if (inotify_add_watch(queue, paths[path], wanted) != path) {
            perror(paths[path]);
            return 1;
        }
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ready");
    for (;;) {
        ssize_t length = read(queue, buffer, sizeof buffer);

        if (length <= 0)
            return 1;
        for (char *at = buffer; at < buffer + length;) {
            const struct inotify_event *event = (const struct inotify_event *)at;

            for (unsigned kind = 0; kind < sizeof kinds / sizeof *kinds; kind++)
                if (event->mask & kinds[kind].mask)
                    printf("%s %s %s\n", paths[event->wd], kinds[kind].name, event->len ? event->name : "");
            at += sizeof *event + event->len;
        }
    }
}
