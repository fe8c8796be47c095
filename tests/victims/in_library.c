/* Dies in a function of a library: in_library LIBRARY FUNCTION [now] */
#include <dlfcn.h>

#include "victim.h"

int main(int argc, char **argv)
{
	void *library = argc > 2 ? dlopen(argv[1], RTLD_NOW) : NULL;
	void (*function)(void) = library ? (void (*)(void))dlsym(library, argv[2]) : NULL;

	check(function != NULL, "LIBRARY FUNCTION");
	ready(argc, argv);
	function();
	return 2;
}
