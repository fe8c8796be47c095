// A C++ exception that nobody catches: std::terminate() aborts.
#include <stdexcept>

#include "victim.h"

namespace shop {

class Order {
public:
	void place(int quantity)
	{
		if (quantity > 0)
			throw std::runtime_error("no such item");
	}
};

} // namespace shop

int main(int argc, char **argv)
{
	shop::Order order;

	ready(argc, argv);
	order.place(argc);
	return 0;
}
