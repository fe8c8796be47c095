/* exit_status [STATUS (default 3)] [now]: leaves by exit(STATUS). */
#include "victim.h"

int main(int argc, char **argv)
{
	int status = (int)number(argc, argv, 1, 3);

	ready(argc, argv);
	exit(status);
}
